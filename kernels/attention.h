// attention: which queries see which keys; apart from kernels.h so that C++ (CUDA launchers) can include it too.
#pragma once
#include <stdint.h>

// Which queries see which keys. Sequence s owns query rows [q_start[s], q_start[s]+q_len[s]) of q and key rows
// [k_start[s], k_start[s]+k_len[s]) of k and v; its last query sits at its last key (k_len >= q_len: the rest is a cache).
// Query i of a sequence sees key j when j <= i + k_len - q_len and, with a window, j > i + k_len - q_len - window.
typedef struct AttnShape {
    int S;
    const int32_t *q_start, *q_len, *k_start, *k_len; // (S), host
    int NH, KV, D;                                    // query head h reads k/v head h / (NH / KV)
    float scale;                                      // score = scale * q·k
    float softcap;                                    // 0: none; else score = cap * tanh(score / cap), before the mask
    int window;                                       // 0: none
} AttnShape;
