// Element types and the registry of devices (devices.def). What a device does stands in its own folder.
#include "kernels.h"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[DT_COUNT] = {
    [DT_F32] = {"f32", 4}, [DT_BF16] = {"bf16", 2}, [DT_F16] = {"f16", 2},
    [DT_I64] = {"i64", 8}, [DT_I32] = {"i32", 4},   [DT_U8] = {"u8", 1},
};

size_t dtype_size(DType t)
{
    ASSERT((unsigned)t < DT_COUNT);
    return dtypes[t].bytes;
}

const char *dtype_name(DType t)
{
    return (unsigned)t < DT_COUNT ? dtypes[t].name : "?";
}

typedef int DeviceOpen(Device **out, const DeviceConfig *c);
#define DEVICE(name, open) DeviceOpen open;
#include "devices.def"
#undef DEVICE

static const struct {
    const char *name;
    DeviceOpen *open;
} devices[] = {
#define DEVICE(name, open) {#name, open},
#include "devices.def"
#undef DEVICE
};

static const char *device_names(void)
{
    const char *names = "auto";
    for (size_t i = 0; i < COUNT_OF(devices); i++) names = tmpf("%s, %s", names, devices[i].name);
    return names;
}

static int open_first(Device **out, const DeviceConfig *c)
{
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        error_clear(); // why an earlier device did not open is no longer of interest
        if (devices[i].open(out, c) == OK) return OK;
    }
    return error_last()->code;
}

int device_open(Device **out, const DeviceConfig *c)
{
    *out = NULL;
    if (streq(c->name, "auto")) return open_first(out, c);
    for (size_t i = 0; i < COUNT_OF(devices); i++)
        if (streq(c->name, devices[i].name)) return devices[i].open(out, c);
    const char *how = streq(c->name, "cuda") ? "; `cmake --preset cuda` makes a build with CUDA" : "";
    return fail(E_MISSING, "device", tmpf("this build has: %s%s", device_names(), how),
                "no device named `%s` in this build", c->name);
}

void device_close(Device *d)
{
    if (d) d->close(d);
}

static int obtain(void *ctx, void **out, size_t bytes, const char *name)
{
    Device *d = ctx;
    return d->obtain(d, out, bytes, name);
}

static void release(void *ctx, void *memory, size_t bytes)
{
    Device *d = ctx;
    d->release(d, memory, bytes);
}

int device_arena(Arena **out, Device *d, const char *name, size_t capacity_bytes)
{
    if (!d->obtain) return arena_open(out, name, capacity_bytes, false);
    return arena_open_at(out, name, capacity_bytes, &(ArenaSource){obtain, release, d});
}

bool device_owns(const Device *d, const void *p)
{
    return d && d->owns && d->owns(d, p);
}
