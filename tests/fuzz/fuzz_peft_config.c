// fuzz: libs=runtime_io
// Any bytes as adapter_config.json: no crash, what is accepted is in range, and its patterns can be asked about a module.
#include "io/peft.h"
#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    PeftConfig c;
    int rank;
    double alpha;
    error_clear();
    if (peft_config_parse(&c, (const char *)data, bytes, "config") < 0) {
        ASSERT(error_last()->code == E_INPUT && error_last()->what[0]);
        return 0;
    }
    ASSERT(c.rank >= 1 && isfinite(c.alpha) && c.dropout >= 0 && c.dropout <= 1);
    ASSERT((c.targets && c.targets[0]) || c.targets_regex);
    if (c.n_pattern <= 4) peft_module_rank(&c, "model.layers.0.self_attn.q_proj", &rank, &alpha);
    peft_config_free(&c);
    return 0;
}
