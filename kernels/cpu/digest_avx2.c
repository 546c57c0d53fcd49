#include "digest_body.h"

const DigestOps digest_ops_avx2 = DIGEST_OPS;
