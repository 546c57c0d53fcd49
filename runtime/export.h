// export: what a run leaves for others. Private to runtime/.
#pragma once
#include "session.h"

int export_adapter(Session *s, const char *dir); // PEFT directory
int export_model(Session *s, const char *dir, DType t,
                 bool merge); // HF directory; merge: adapters added in f32, rounded once
