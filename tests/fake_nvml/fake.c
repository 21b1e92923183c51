/* An NVML of our own: what it answers stands in the text file that FAKE_NVML names, read anew whenever it changes.

     driver 550.54.15                                   system: versions, the answer of nvmlInit
     init 0
     device UUID TOTAL RESERVED USED NAME...            in NVML's order
     mig PARENT_UUID UUID TOTAL RESERVED USED NAME...   makes MIG mode of the parent read as on
     lost UUID                                          every call for it says that the GPU is lost
     process UUID PID BYTES                             BYTES -1: not available
     accounting UUID PID BYTES                          makes accounting mode read as on
     xid UUID CODE                                      one event
     error FUNCTION CODE                                FUNCTION answers CODE

   Compiled with -DOLD_DRIVER it lacks what drivers before 510 lack. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef unsigned long long u64;
typedef struct { char uuid[96], parent[96], name[96]; u64 total, reserved, used; int lost, mig; } Device;
typedef struct { char uuid[96]; u64 a; long long b; } Row;
typedef struct { char name[80]; int code; } Error;

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, TIMEOUT = 10, LOST = 15 };

static Device devices[64];
static Row processes[64], accounting[64], xids[64];
static Error errors[64];
static int n_devices, n_processes, n_accounting, n_xids, n_errors, given_xids, init_code;
static char driver[64], nvml_version[64];
static struct timespec read_at;
static ino_t read_ino;

static Device *find(const char *uuid) {
    for (int i = 0; i < n_devices; i++) if (!strcmp(devices[i].uuid, uuid)) return &devices[i];
    return NULL;
}

/* A slot is kept for a uuid once seen, so that handles stay good when the file changes. */
static Device *slot(const char *uuid) {
    Device *d = find(uuid);
    if (!d && n_devices < 64) { d = &devices[n_devices++]; strcpy(d->uuid, uuid); }
    return d;
}

static void look(void) {
    const char *path = getenv("FAKE_NVML");
    struct stat s;
    if (!path || stat(path, &s)) return;
    if (s.st_ino == read_ino && !memcmp(&s.st_mtim, &read_at, sizeof read_at)) return;
    FILE *f = fopen(path, "r");
    if (!f) return;
    read_ino = s.st_ino; read_at = s.st_mtim;
    n_processes = n_accounting = n_xids = n_errors = init_code = 0;
    for (int i = 0; i < n_devices; i++) devices[i].lost = 0;
    strcpy(driver, "550.54.15"); strcpy(nvml_version, "12.550.54.15");
    char line[512], word[80], uuid[96], other[96];
    while (fgets(line, sizeof line, f)) {
        u64 a, b, c; long long bytes; int end = 0, code;
        if (sscanf(line, "%79s", word) != 1) continue;
        if (!strcmp(word, "driver")) sscanf(line, "%*s %63s", driver);
        else if (!strcmp(word, "nvml")) sscanf(line, "%*s %63s", nvml_version);
        else if (!strcmp(word, "init")) sscanf(line, "%*s %d", &init_code);
        else if (!strcmp(word, "device") && sscanf(line, "%*s %95s %llu %llu %llu %n", uuid, &a, &b, &c, &end) >= 4) {
            Device *d = slot(uuid);
            d->total = a; d->reserved = b; d->used = c; d->parent[0] = 0;
            sscanf(line + end, "%95[^\n]", d->name);
        } else if (!strcmp(word, "mig") && sscanf(line, "%*s %95s %95s %llu %llu %llu %n", other, uuid, &a, &b, &c, &end) >= 5) {
            Device *d = slot(uuid);
            d->total = a; d->reserved = b; d->used = c; strcpy(d->parent, other);
            sscanf(line + end, "%95[^\n]", d->name);
        } else if (!strcmp(word, "lost") && sscanf(line, "%*s %95s", uuid) == 1) { if (find(uuid)) find(uuid)->lost = 1; }
        else if (sscanf(line, "%*s %95s %llu %lld", uuid, &a, &bytes) >= 2 && strcmp(word, "error")) {
            Row r; strcpy(r.uuid, uuid); r.a = a; r.b = bytes;
            if (!strcmp(word, "process") && n_processes < 64) processes[n_processes++] = r;
            if (!strcmp(word, "accounting") && n_accounting < 64) accounting[n_accounting++] = r;
            if (!strcmp(word, "xid") && n_xids < 64) xids[n_xids++] = r;
        } else if (!strcmp(word, "error") && n_errors < 64 && sscanf(line, "%*s %79s %d", word, &code) == 2) {
            strcpy(errors[n_errors].name, word); errors[n_errors++].code = code;
        }
    }
    fclose(f);
}

static int fault(const char *function, Device *d) {
    look();
    for (int i = 0; i < n_errors; i++) if (!strcmp(errors[i].name, function)) return errors[i].code;
    return d && d->lost ? LOST : OK;
}
#define CHECK(d) do { int code_ = fault(__func__, (Device *)(d)); if (code_) return code_; } while (0)
#define WHOLE_ONLY(d) do { if (((Device *)(d))->parent[0]) return NOT_SUPPORTED; } while (0)

int nvmlInitWithFlags(unsigned flags) { CHECK(NULL); return init_code; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "an error of the fake"; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { CHECK(NULL); snprintf(out, n, "%s", driver); return OK; }
int nvmlSystemGetNVMLVersion(char *out, unsigned n) { CHECK(NULL); snprintf(out, n, "%s", nvml_version); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { CHECK(NULL); *out = 12040; return OK; }

static int whole(Device *d) { return !d->parent[0]; }

int nvmlDeviceGetCount_v2(unsigned *out) {
    CHECK(NULL); *out = 0;
    for (int i = 0; i < n_devices; i++) *out += whole(&devices[i]);
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    CHECK(NULL);
    for (int i = 0; i < n_devices; i++) if (whole(&devices[i]) && index-- == 0) {
        *out = &devices[i];
        return devices[i].lost ? LOST : OK;
    }
    return INVALID;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) { CHECK(NULL); *out = find(uuid); return *out ? OK : NOT_FOUND; }
int nvmlDeviceGetUUID(Device *d, char *out, unsigned n) { CHECK(d); snprintf(out, n, "%s", d->uuid); return OK; }
int nvmlDeviceGetName(Device *d, char *out, unsigned n) { CHECK(d); snprintf(out, n, "%s", d->name); return OK; }

typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;

int nvmlDeviceGetMemoryInfo(Device *d, Memory *m) {
    CHECK(d); m->total = d->total; m->used = d->used + d->reserved; m->free = m->total - m->used; return OK;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(Device *d, Memory2 *m) {
    CHECK(d);
    if (m->version != (sizeof(Memory2) | 2u << 24)) return 25;
    m->total = d->total; m->reserved = d->reserved; m->used = d->used; m->free = d->total - d->reserved - d->used;
    return OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(Device *d, u64 *out) { CHECK(d); WHOLE_ONLY(d); *out = 4; return OK; }
#endif
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, u64 *out) { CHECK(d); WHOLE_ONLY(d); *out = 4; return OK; }
int nvmlDeviceGetUtilizationRates(Device *d, unsigned *out) { CHECK(d); WHOLE_ONLY(d); out[0] = 97; out[1] = 61; return OK; }
int nvmlDeviceGetPowerUsage(Device *d, unsigned *out) { CHECK(d); WHOLE_ONLY(d); *out = 345678; return OK; }
int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *out) { CHECK(d); WHOLE_ONLY(d); *out = 61; return OK; }
int nvmlDeviceGetTotalEccErrors(Device *d, int kind, int counter, u64 *out) { CHECK(d); *out = 0; return OK; }

typedef struct { unsigned pid; u64 bytes; unsigned gi, ci; } Process;

int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, Process *out) {
    CHECK(d);
    unsigned room = *count; *count = 0;
    for (int i = 0; i < n_processes; i++) if (!strcmp(processes[i].uuid, d->uuid)) {
        if (out && *count < room) { out[*count].pid = processes[i].a; out[*count].bytes = processes[i].b; }
        ++*count;
    }
    return *count > room || (*count && !out) ? SMALL : OK;
}

int nvmlDeviceGetMigMode(Device *d, unsigned *current, unsigned *pending) {
    CHECK(d); *current = 0;
    for (int i = 0; i < n_devices; i++) if (!strcmp(devices[i].parent, d->uuid)) *current = 1;
    *pending = *current; return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *out) { CHECK(d); *out = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned index, void **out) {
    CHECK(d);
    for (int i = 0; i < n_devices; i++) if (!strcmp(devices[i].parent, d->uuid) && index-- == 0) { *out = &devices[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceIsMigDeviceHandle(Device *d, unsigned *out) { CHECK(d); *out = !whole(d); return OK; }

typedef struct { unsigned gpu, memory; u64 max_bytes, time, start; unsigned running, reserved[5]; } Stats;

int nvmlDeviceGetAccountingMode(Device *d, int *out) {
    CHECK(d); *out = 0;
    for (int i = 0; i < n_accounting; i++) *out |= !strcmp(accounting[i].uuid, d->uuid);
    return OK;
}
int nvmlDeviceGetAccountingStats(Device *d, unsigned pid, Stats *out) {
    CHECK(d);
    for (int i = 0; i < n_accounting; i++) if (!strcmp(accounting[i].uuid, d->uuid) && accounting[i].a == pid) {
        memset(out, 0, sizeof *out); out->max_bytes = accounting[i].b; return OK;
    }
    return NOT_FOUND;
}

typedef struct { void *device; u64 type, data; unsigned gi, ci; } Event;

int nvmlEventSetCreate(void **out) { CHECK(NULL); *out = &given_xids; return OK; }
int nvmlEventSetFree(void *set) { return OK; }
int nvmlDeviceRegisterEvents(Device *d, u64 types, void *set) { CHECK(d); WHOLE_ONLY(d); return OK; }
int nvmlEventSetWait_v2(void *set, Event *out, unsigned timeout_ms) {
    CHECK(NULL);
    if (given_xids >= n_xids) return TIMEOUT;
    Row *r = &xids[given_xids++];
    out->device = find(r->uuid); out->type = 8; out->data = r->a;
    return OK;
}
