/* NVIDIA's libnvidia-ml.so.1 of a machine with two GPUs, as far as Ray and workers call it. Their load and memory are fixed. */

#include <stddef.h>
#include <string.h>

#define COUNT 2

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_FOUND = 6 };

typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { const char *name, *uuid; Utilization load; } Device;

static Device devices[COUNT] = {
    {"NVIDIA H100 80GB HBM3", "GPU-00000000-0000-0000-0000-000000000000", {37, 11}},
    {"NVIDIA H100 80GB HBM3", "GPU-11111111-1111-1111-1111-111111111111", {82, 23}},
};
static int users;

int nvmlInit_v2(void) { users++; return SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return users ? (users--, SUCCESS) : UNINITIALIZED; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = COUNT;
    return users ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **found) {
    if (index >= COUNT) return INVALID_ARGUMENT;
    *found = &devices[index];
    return users ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **found) {
    for (size_t index = 0; index < COUNT; index++)
        if (!strcmp(devices[index].uuid, uuid)) return nvmlDeviceGetHandleByIndex_v2((unsigned)index, found);
    return NOT_FOUND;
}

int nvmlDeviceGetName(const Device *device, char *name, unsigned length) {
    strncpy(name, device->name, length);
    return users ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetUtilizationRates(const Device *device, Utilization *load) {
    *load = device->load;
    return users ? SUCCESS : UNINITIALIZED;
}
