// gelu: the forms of the Gaussian error linear unit that models are trained with, and their constants.
#pragma once

typedef enum Gelu {
    GELU_ERF,   // "gelu": BERT, ViT
    GELU_TANH,  // "gelu_pytorch_tanh", "gelu_new": Gemma, SigLIP, GPT-2
    GELU_QUICK, // "quick_gelu": CLIP
} Gelu;

// The approximations are x * sigmoid(x (a + b x²)).
typedef struct GeluCubic {
    float a, b;
} GeluCubic;

static inline GeluCubic gelu_cubic(Gelu kind)
{
    const float k = 1.5957691216f; // 2 sqrt(2 / pi)
    return kind == GELU_TANH ? (GeluCubic){k, k * 0.044715f} : (GeluCubic){1.702f, 0};
}
