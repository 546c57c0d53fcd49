// provenance: where a run's numbers come from. Private to runtime/.
#pragma once
#include "session.h"
#include <jansson.h>

// Collective. A JSON object, the caller's; the same on every rank:
//   attune, commit, compiler, libraries {name: version}, isa, device
//   hosts {name: ranks}, ranks, tensor, data, zero, threads
//   started_utc
//   base_files, adapter_files [{file, bytes, modified_utc, xxh64}]: what the run began with; xxh64 of files up to 256 MiB
//   from {checkpoint, manifest}: when that is another run's checkpoint
// Nothing of the environment, and of the user only what the recipe's paths tell.
int provenance_open(json_t **out, Session *s);
// {checkpoint, manifest}: its directory, and the digest of its MANIFEST, which holds those of its tensors.
json_t *provenance_of_checkpoint(const char *dir);
