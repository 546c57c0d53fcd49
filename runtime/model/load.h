// load: what load.c, trainable.c and decoder.c share about the parameter table.
#pragma once
#include "model/model.h"

unsigned param_id_flags(ParamId id); // PF_*
