// convert.c: the verb `convert`: a model (Hugging Face directory, GGUF, checkpoint of a run) becomes a Hugging Face directory; with an
// adapter it is merged, in f32, onto the base as dequantised, and rounded once. An adapter checkpoint becomes a PEFT directory.
#include "export.h"
#include "runtime.h"

// The number format to write when none is asked for: the file's own where it is one of ours, bf16 for quantised ones.
static int default_dtype(const char *src, DType *t)
{
    Weights *w;
    TRY(weights_open(&w, src));
    bool f32 = weights_count(w) > 0;
    for (int i = 0; i < weights_count(w); i++)
        if (weights_info(w, i)->ndim > 1 && !streq(weights_info(w, i)->stored, "F32")) f32 = false;
    *t = f32 ? DT_F32 : DT_BF16;
    weights_close(w);
    return OK;
}

static int convert_model(const char *src, const char *dst, const char *adapter, const char *dtype)
{
    Session s = {0};
    Comm *self = NULL;
    DType t = streq(dtype, "f32") ? DT_F32 : DT_BF16;
    int status = comm_open(&self, &(CommConfig){.kind = "self"});
    if (status == OK)
        status = session_open_model(
            &s, self, &(ModelArgs){.model = src, .adapter = adapter, .precision = "f32", .device = "cpu"});
    if (status == OK && !*dtype) status = default_dtype(s.recipe.model, &t);
    if (status == OK) status = session_model(&s, 1, false, 0);
    if (status == OK && s.from && s.spec.lora)
        status = export_adapter(&s, NULL, dst);
    else if (status == OK)
        status = export_model(&s, NULL, dst, t, adapter != NULL);
    session_close(&s);
    comm_close(self);
    return status;
}

int run_convert(const char *src, const char *dst, const char *adapter, const char *dtype)
{
    if (*dtype && !streq(dtype, "f32") && !streq(dtype, "bf16"))
        return fail(E_INPUT, "--dtype", "f32 or bf16", "\"%s\"", dtype);
    if (path_exists(tmpf("%s/config.json", dst)) || path_exists(tmpf("%s/adapter_config.json", dst)))
        return fail(E_INPUT, dst, "name a directory that does not exist yet", "already holds a model or an adapter");
    return convert_model(src, dst, adapter, dtype);
}
