// reference: the CPU's device of references, for tests that compare launchers with it; open_reference and close_reference are a group's
// setup and teardown.
#pragma once
#include "cudahost_test.h"

static Device *reference;

static int open_reference(void **state)
{
    (void)state;
    return device_open(&reference, &(DeviceConfig){.name = "cpu-ref"});
}
static int close_reference(void **state)
{
    (void)state;
    device_close(reference);
    return 0;
}
