/* A libnvidia-ml.so.1 whose GPUs live in a mapped file, so that tests and other processes can change them.
   Only what Stackyard's probe calls is here. Build with -DNO_V2 for a driver without the v2 memory call. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define GPUS 8
#define INSTANCES 7
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, VERSION_MISMATCH = 25 };

struct memory { unsigned long long total, reserved, used; };
struct instance { char uuid[96]; unsigned exists, error; struct memory memory; };
struct gpu {
    char uuid[96], name[96];
    unsigned error, handle_error, mig_mode, mig_error;
    struct memory memory;
    struct instance instances[INSTANCES];
};
struct state { unsigned count, init_error, delay_ms, initialised; struct gpu gpus[GPUS]; };

static struct state *state;

static int load(void) {
    if (state) return 1;
    const char *path = getenv("FAKE_NVML_STATE");
    int fd = path ? open(path, O_RDWR) : -1;
    if (fd < 0) return 0;
    state = mmap(0, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return state != MAP_FAILED;
}

static void answer_late(void) {
    struct timespec wait = {state->delay_ms / 1000, (state->delay_ms % 1000) * 1000000L};
    if (state->delay_ms) nanosleep(&wait, 0);
}

/* A handle is 1 + the GPU's number, plus 16 x (1 + number) for a MIG instance of it. */
static struct gpu *gpu_of(void *handle) { return &state->gpus[(((size_t)handle - 1) & 15) % GPUS]; }
static struct instance *instance_of(void *handle) {
    size_t number = ((size_t)handle - 1) >> 4;
    return number ? &gpu_of(handle)->instances[number - 1] : 0;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!load()) return 9;
    if (!state->init_error) state->initialised++;
    return (int)state->init_error;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = state->count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index >= state->count) return INVALID_ARGUMENT;
    *handle = (void *)(size_t)(index + 1);
    return (int)state->gpus[index].handle_error;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    struct instance *instance = instance_of(handle);
    snprintf(text, length, "%s", instance ? instance->uuid : gpu_of(handle)->uuid);
    return OK;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    snprintf(text, length, "%s%s", gpu_of(handle)->name, instance_of(handle) ? " MIG" : "");
    return OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    *current = *pending = gpu_of(handle)->mig_mode;
    return (int)gpu_of(handle)->mig_error;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { (void)handle; *count = INSTANCES; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **found) {
    if (!gpu_of(handle)->instances[index].exists) return NOT_FOUND;
    *found = (void *)((size_t)handle + 16 * (index + 1));
    return OK;
}

static int memory_of(void *handle, struct memory *memory) {
    struct instance *instance = instance_of(handle);
    answer_late();
    *memory = instance ? instance->memory : gpu_of(handle)->memory;
    return (int)(instance ? instance->error : gpu_of(handle)->error);
}
struct memory_v1 { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(void *handle, struct memory_v1 *out) {
    struct memory memory;
    int error = memory_of(handle, &memory);
    /* v1 counts what the driver keeps for itself as used */
    out->total = memory.total;
    out->used = memory.used + memory.reserved;
    out->free = memory.total - out->used;
    return error;
}
#ifndef NO_V2
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *out) {
    struct memory memory;
    int error = memory_of(handle, &memory);
    if (out->version != 0x02000028) return VERSION_MISMATCH;
    out->total = memory.total;
    out->reserved = memory.reserved;
    out->used = memory.used;
    out->free = memory.total - memory.used - memory.reserved;
    return error;
}
#endif
