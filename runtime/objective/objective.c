#include "objective/objective.h"

#define OBJECTIVE(name) extern const Objective objective_##name;
#include "objective/objectives.def"
#undef OBJECTIVE

static const Objective *const objectives[] = {
#define OBJECTIVE(name) &objective_##name,
#include "objective/objectives.def"
#undef OBJECTIVE
};

const Objective *objective_find(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(objectives); i++)
        if (streq(objectives[i]->name, name)) return objectives[i];
    return NULL;
}
