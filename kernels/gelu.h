// gelu: the forms of the Gaussian error linear unit that models are trained with, and their constants.
#pragma once

typedef enum Gelu {
    GELU_ERF,   // "gelu": BERT, ViT
    GELU_TANH,  // "gelu_pytorch_tanh", "gelu_new": Gemma, SigLIP, GPT-2
    GELU_QUICK, // "quick_gelu": CLIP
} Gelu;

// The approximations are x * sigmoid(x (A + B x²)); 1.5957... = 2 sqrt(2 / pi).
#define GELU_A(kind) ((kind) == GELU_TANH ? 1.5957691216f : 1.702f)
#define GELU_B(kind) ((kind) == GELU_TANH ? 1.5957691216f * 0.044715f : 0.0f)
