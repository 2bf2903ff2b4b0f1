// libcuda.so.1: the few calls of the driver that torch makes by itself. There is one card, and a context on it.
#include <stddef.h>

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0;
    *active = 1;
    return 0;
}

int cuCtxGetCurrent(void **context) {
    *context = (void *)1;
    return 0;
}

int cuCtxSetCurrent(void *context) {
    return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)1;
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = 0;
    return 0;
}

int cuGetErrorString(int error, const char **text) {
    *text = "the stub of the driver has no errors";
    return 0;
}
