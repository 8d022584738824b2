/* A libnvidia-ml.so.1 of made-up GPUs whose power is known: a square wave over CLOCK_MONOTONIC.
 *
 *   P_i(t) = BASE_W + 100 W * i + (SWING_W in the first half of each SWING_PERIOD_MS, counted from t = 0)
 *
 * The energy counter shows the exact integral since t = 0 as of its last update (each COUNTER_PERIOD_MS, on a grid from
 * t = 0); the instantaneous power is true when it is asked for. Set by environment variables, all NVML_STUB_*:
 *
 *   GPUS, BASE_W, SWING_W, SWING_PERIOD_MS, COUNTER_PERIOD_MS, THROTTLE (mask), MIG (0/1), ARCH
 *   FAIL        "field:code,..."; field is an NVML field number or the name of a function below without "nvmlDeviceGet"
 *   FAIL_GPU    the GPU that fails, is lost or is reset; -1 (default): each of them
 *   FAIL_AFTER_MS, LOST_AFTER_MS, RESET_AFTER_MS    since nvmlInit; RESET sets the counter back to 0 once
 *   FAIL_ONCE   1: what fails, fails until nvmlInit is called a second time
 *   INIT        what nvmlInit returns
 *   HANDLE      "index:code,...": GPUs of which no handle can be had
 *   NAME, UTILIZATION (%), MEMORY_MIB, LIMIT_W, CAPABILITY (of CUDA; default: not said)    of every GPU
 *   INSTANT_W   what the instantaneous power says instead of the truth
 *   PROCESSES   a file with a line "index pid MiB" for each compute process, "index -pid MiB" for a graphics process
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };
enum { FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };

typedef struct { int index; } *Device;
typedef union { double d; unsigned u; unsigned long ul; unsigned long long ull; long long sll; } Value;
typedef struct {
    unsigned field, scope;
    int64_t timestamp_us, latency_us;
    int type, status;
    Value value;
} FieldValue;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;

typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;

static struct { int index; } devices[64];
static double began_s;
static int inits;

static double setting(const char *name, double otherwise) {
    char full[64];
    snprintf(full, sizeof full, "NVML_STUB_%s", name);
    const char *text = getenv(full);
    return text && *text ? strtod(text, NULL) : otherwise;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double base_w(Device d) { return setting("BASE_W", 300) + 100.0 * d->index; }

static int high(double t_s) {
    double period_s = setting("SWING_PERIOD_MS", 1000) / 1e3, turns = t_s / period_s;
    return turns - (double)(int64_t)turns < 0.5;
}

static double power_w(Device d, double t_s) { return base_w(d) + (high(t_s) ? setting("SWING_W", 0) : 0); }

static double energy_j(Device d, double t_s) {
    double period_s = setting("SWING_PERIOD_MS", 1000) / 1e3;
    double whole = (double)(int64_t)(t_s / period_s), rest_s = t_s - whole * period_s;
    double high_s = whole * period_s / 2 + (rest_s < period_s / 2 ? rest_s : period_s / 2);
    return base_w(d) * t_s + setting("SWING_W", 0) * high_s;
}

static int fails_now(Device d) {
    if (inits > 1 && setting("FAIL_ONCE", 0)) return 0;
    double gpu = setting("FAIL_GPU", -1);
    return gpu < 0 || (int)gpu == d->index;
}

static int due(Device d, const char *setting_name) {
    double after_ms = setting(setting_name, -1);
    return after_ms >= 0 && fails_now(d) && now_s() - began_s >= after_ms / 1e3;
}

/* The code that a list "what:code,..." gives `what`, or success. */
static int code_of(const char *list, const char *what) {
    size_t length = strlen(what);
    for (const char *at = list; at && *at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (!strncmp(at, what, length) && at[length] == ':') return atoi(at + length + 1);
    return SUCCESS;
}

/* The code that FAIL gives `what`, or success. */
static int status_of(Device d, const char *what) {
    if (due(d, "LOST_AFTER_MS")) return GPU_IS_LOST;
    const char *list = getenv("NVML_STUB_FAIL");
    if (!list || !fails_now(d) || now_s() - began_s < setting("FAIL_AFTER_MS", 0) / 1e3) return SUCCESS;
    return code_of(list, what);
}

static unsigned long long counter_mj(Device d) {
    double period_s = setting("COUNTER_PERIOD_MS", 100) / 1e3;
    double update_s = (double)(int64_t)(now_s() / period_s) * period_s;
    double since_j = 0;
    if (due(d, "RESET_AFTER_MS")) {
        double reset_s = began_s + setting("RESET_AFTER_MS", 0) / 1e3;
        if (update_s < reset_s) return 0;
        since_j = energy_j(d, reset_s);
    }
    return (unsigned long long)((energy_j(d, update_s) - since_j) * 1e3);
}

static unsigned power_mw(Device d) { return (unsigned)(setting("INSTANT_W", power_w(d, now_s())) * 1e3); }
static unsigned mean_mw(Device d) { return (unsigned)((base_w(d) + setting("SWING_W", 0) / 2) * 1e3); }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    began_s = now_s();
    inits++;
    for (int i = 0; i < 64; i++) devices[i].index = i;
    return (int)setting("INIT", 0);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "stub error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "570.00-stub");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)setting("GPUS", 1);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *d) {
    if (index >= (unsigned)setting("GPUS", 1)) return INVALID_ARGUMENT;
    *d = (Device)&devices[index];
    char number[16];
    snprintf(number, sizeof number, "%u", index);
    return code_of(getenv("NVML_STUB_HANDLE"), number);
}

int nvmlDeviceGetUUID(Device d, char *text, unsigned length) {
    snprintf(text, length, "GPU-5709b000-0000-0000-0000-%012d", d->index);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *d) {
    char own[96];
    for (unsigned i = 0; i < (unsigned)setting("GPUS", 1); i++) {
        nvmlDeviceGetUUID((Device)&devices[i], own, sizeof own);
        if (!strcmp(uuid, own)) return nvmlDeviceGetHandleByIndex_v2(i, d);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(Device d, char *text, unsigned length) {
    (void)d;
    const char *name = getenv("NVML_STUB_NAME");
    snprintf(text, length, "%s", name ? name : "Stub GPU");
    return SUCCESS;
}

int nvmlDeviceGetVbiosVersion(Device d, char *text, unsigned length) {
    snprintf(text, length, "00.00.stub");
    return status_of(d, "VbiosVersion");
}

#define ANSWER(name, type, value)                                                                                    \
    int nvmlDeviceGet##name(Device d, type *out) {                                                                   \
        int status = status_of(d, #name);                                                                            \
        if (status == SUCCESS) *out = (type)(value);                                                                 \
        return status;                                                                                               \
    }

ANSWER(PowerUsage, unsigned, power_mw(d))
ANSWER(TotalEnergyConsumption, unsigned long long, counter_mj(d))
ANSWER(EnforcedPowerLimit, unsigned, setting("LIMIT_W", 650) * 1e3)
ANSWER(PowerManagementDefaultLimit, unsigned, 700000)
ANSWER(CurrentClocksEventReasons, unsigned long long, setting("THROTTLE", 0))
ANSWER(CurrentClocksThrottleReasons, unsigned long long, setting("THROTTLE", 0))
ANSWER(PersistenceMode, int, 1)
ANSWER(Architecture, unsigned, setting("ARCH", 9))

int nvmlDeviceGetCudaComputeCapability(Device d, int *major, int *minor) {
    int tenths = (int)(setting("CAPABILITY", 0) * 10 + 0.5);
    *major = tenths / 10, *minor = tenths % 10;
    return tenths ? status_of(d, "CudaComputeCapability") : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerManagementLimitConstraints(Device d, unsigned *least, unsigned *most) {
    *least = 200000, *most = 700000;
    return status_of(d, "PowerManagementLimitConstraints");
}

int nvmlDeviceGetTemperature(Device d, int sensor, unsigned *celsius) {
    (void)sensor;
    *celsius = 55;
    return status_of(d, "Temperature");
}

int nvmlDeviceGetClockInfo(Device d, int which, unsigned *mhz) {
    *mhz = which == 2 ? 2619 : 1980; /* 2: memory */
    return status_of(d, "ClockInfo");
}

int nvmlDeviceGetMemoryInfo(Device d, Memory *memory) {
    *memory = (Memory){.total = 80ULL << 30, .used = 11ULL << 30, .free = 69ULL << 30};
    return status_of(d, "MemoryInfo");
}

int nvmlDeviceGetMemoryInfo_v2(Device d, MemoryV2 *memory) {
    unsigned long long used = (unsigned long long)setting("MEMORY_MIB", 10240) << 20;
    memory->total = 80ULL << 30, memory->reserved = 1ULL << 30, memory->used = used, memory->free = (79ULL << 30) - used;
    return status_of(d, "MemoryInfo_v2");
}

int nvmlDeviceGetUtilizationRates(Device d, Utilization *percent) {
    *percent = (Utilization){.gpu = (unsigned)setting("UTILIZATION", 83), .memory = 41};
    return status_of(d, "UtilizationRates");
}

static int processes(Device d, int graphics, unsigned *count, Process *found) {
    const char *path = getenv("NVML_STUB_PROCESSES");
    FILE *file = path ? fopen(path, "r") : NULL;
    unsigned room = *count, seen = 0;
    int index, pid;
    unsigned long long mib;
    while (file && fscanf(file, "%d %d %llu", &index, &pid, &mib) == 3) {
        if (index != d->index || (pid < 0) != graphics) continue;
        if (seen < room) found[seen] = (Process){.pid = (unsigned)abs(pid), .memory = mib << 20};
        seen++;
    }
    if (file) fclose(file);
    *count = seen;
    return seen > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device d, unsigned *count, Process *found) {
    int status = status_of(d, "ComputeRunningProcesses");
    return status == SUCCESS ? processes(d, 0, count, found) : status;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device d, unsigned *count, Process *found) {
    int status = status_of(d, "GraphicsRunningProcesses");
    return status == SUCCESS ? processes(d, 1, count, found) : status;
}

int nvmlDeviceGetMigMode(Device d, unsigned *current, unsigned *pending) {
    *current = *pending = (unsigned)setting("MIG", 0);
    return status_of(d, "MigMode");
}

int nvmlDeviceGetFieldValues(Device d, int count, FieldValue *values) {
    int whole = status_of(d, "FieldValues");
    if (whole != SUCCESS) return whole;
    for (int i = 0; i < count; i++) {
        FieldValue *v = &values[i];
        char number[16];
        snprintf(number, sizeof number, "%u", v->field);
        v->status = status_of(d, number);
        v->type = v->field == FIELD_ENERGY ? TYPE_UNSIGNED_LONG_LONG : TYPE_UNSIGNED_INT;
        memset(&v->value, 0xff, sizeof v->value); /* what is beside a narrower value is not 0 */
        if (v->status != SUCCESS) continue;
        if (v->field == FIELD_ENERGY) v->value.ull = counter_mj(d);
        else if (v->field == FIELD_POWER_INSTANT) v->value.u = power_mw(d);
        else if (v->field == FIELD_POWER_AVERAGE) v->value.u = mean_mw(d);
        else v->status = NOT_SUPPORTED;
    }
    return SUCCESS;
}
