/* Kills the process with SIGKILL at a chosen fdatasync of a segment, so that tests can crash between append and
 * sync, and between commit and delivery, or holds it up there. Loaded with LD_PRELOAD.
 *
 * FAULT_BEFORE=n  before the n-th call; FAULT_NOTE names the file that then gets two lines: the segment's path, and
 *                 its length when this process last synced it (-1: never), for the harness to cut it back to.
 * FAULT_HOLD=file while this file exists, every call waits before it syncs; FAULT_NOTE gets its two lines meanwhile.
 * FAULT_AFTER=n   after the n-th call, when its epoch is committed and not yet delivered.
 * FAULT_OPEN=end  before a file is opened whose path ends so: of the log and of the sinks, which are read and opened
 *                 before anything else happens, that is in the midst of recovery. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_MAX 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long calls;
static struct { ino_t inode; long length; } synced[FILES_MAX];
static int files;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int slot(ino_t inode) {
    for (int i = 0; i < files; i++)
        if (synced[i].inode == inode) return i;
    /* A full table overwrites its last entry: then only the cut is shorter than it might be. */
    int i = files < FILES_MAX ? files++ : FILES_MAX - 1;
    synced[i].inode = inode;
    synced[i].length = -1;
    return i;
}

/* Whole or not at all: whoever reads it meanwhile sees no half of it. */
static void note(const char *segment, long length) {
    const char *name = getenv("FAULT_NOTE");
    char half[4096];
    if (!name || snprintf(half, sizeof half, "%s.half", name) >= (int)sizeof half) return;
    FILE *f = fopen(half, "w");
    if (!f) return;
    fprintf(f, "%s\n%ld\n", segment, length);
    fclose(f);
    rename(half, name);
}

static int on_sync(int fd, int (*real)(int)) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 4) return real(fd);
    path[n] = 0;
    struct stat st;
    if (strcmp(path + n - 4, ".seg") != 0 || fstat(fd, &st) != 0) return real(fd);

    pthread_mutex_lock(&lock);
    calls++;
    int at = slot(st.st_ino);
    if (calls == number("FAULT_BEFORE")) {
        note(path, synced[at].length);
        die();
    }
    const char *hold = getenv("FAULT_HOLD");
    if (hold && access(hold, F_OK) == 0) {
        note(path, synced[at].length);
        while (access(hold, F_OK) == 0) usleep(1000);
    }
    long mine = calls;
    int result = real(fd);
    if (result == 0) synced[at].length = st.st_size;
    if (mine == number("FAULT_AFTER")) die();
    pthread_mutex_unlock(&lock);
    return result;
}

static void on_open(const char *path) {
    const char *end = getenv("FAULT_OPEN");
    size_t n = strlen(path), m = end ? strlen(end) : 0;
    if (m > 0 && n >= m && strcmp(path + n - m, end) == 0) die();
}

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, mode_t);
    if (!real) real = (int (*)(const char *, int, mode_t))dlsym(RTLD_NEXT, "open64");
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    on_open(path);
    return real(path, flags, mode);
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return on_sync(fd, real);
}
