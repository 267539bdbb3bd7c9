/* Writes down what a process does to the files below RECORD_UNDER, in order, so that a test can rebuild the disk as a
 * power cut would have left it at any moment. Loaded with LD_PRELOAD; the trace goes to the file RECORD_TO.
 *
 * A record: op (1 byte), then as 8-byte little-endian numbers: inode, offset or length, lengths of path, second path and
 * data; then these. Ops: C file created, D directory made, W written, T length set, S file synced, s directory synced, R renamed, U
 * name removed. What is mapped into memory is not seen: SQLite's -shm, which is made anew after a power cut. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1;
static const char *under;
static size_t under_length;

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void begin(void) {
    pthread_mutex_lock(&lock);
    if (under) return;
    REAL(open64);
    under = getenv("RECORD_UNDER");
    if (!under) under = "/nowhere/";
    under_length = strlen(under);
    const char *to = getenv("RECORD_TO");
    if (to) trace = real(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void end(void) { pthread_mutex_unlock(&lock); }

static void put(const void *bytes, size_t n) {
    REAL(write);
    const char *at = bytes;
    while (n > 0) {
        ssize_t done = real(trace, at, n);
        if (done <= 0) abort();
        at += done;
        n -= (size_t)done;
    }
}

static void record(char op, uint64_t inode, uint64_t number, const char *path, const char *other, const void *data,
                   size_t n) {
    if (trace < 0) return;
    uint64_t head[5] = { inode, number, strlen(path), strlen(other), n };
    put(&op, 1);
    put(head, sizeof head);
    put(path, head[2]);
    put(other, head[3]);
    put(data, n);
}

/* The part of a path below RECORD_UNDER, which ends with a slash; null: elsewhere. */
static const char *below(const char *path) {
    if (strncmp(path, under, under_length) == 0) return path + under_length;
    return strlen(path) + 1 == under_length && strncmp(path, under, under_length - 1) == 0 ? "" : NULL;
}

static const char *absolute(const char *path, char *out) {
    if (path[0] == '/') return strncpy(out, path, PATH_MAX - 1), out[PATH_MAX - 1] = 0, out;
    if (!getcwd(out, PATH_MAX)) return path;
    size_t n = strlen(out);
    if (strncmp(path, "./", 2) == 0) path += 2;
    out[n] = '/';
    strncpy(out + n + 1, path, PATH_MAX - n - 2);
    out[PATH_MAX - 1] = 0;
    return out;
}

/* The recorded name of an open file; null: not recorded. */
static const char *name_of(int fd, char *out) {
    char link[64];
    strcpy(link, "/proc/self/fd/");
    char digits[16];
    int n = 0, rest = fd;
    do digits[n++] = (char)('0' + rest % 10); while (rest /= 10);
    size_t at = strlen(link);
    while (n > 0) link[at++] = digits[--n];
    link[at] = 0;
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    if (length < 0) return NULL;
    out[length] = 0;
    return below(out);
}

static int is_file(int fd, struct stat *st) { return fstat(fd, st) == 0 && S_ISREG(st->st_mode); }

int open64(const char *path, int flags, ...) {
    REAL(open64);
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    if (!(flags & (O_CREAT | O_TRUNC))) return real(path, flags, mode);
    begin();
    int there = access(path, F_OK) == 0;
    int fd = real(path, flags, mode);
    char name[PATH_MAX];
    struct stat st;
    const char *recorded = fd >= 0 ? name_of(fd, name) : NULL;
    if (recorded && is_file(fd, &st)) {
        if (!there) record('C', st.st_ino, 0, recorded, "", "", 0);
        else if (flags & O_TRUNC) record('T', st.st_ino, 0, "", "", "", 0);
    }
    end();
    return fd;
}
int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open64(path, flags, mode);
}

static void wrote(int fd, uint64_t offset, const void *bytes, ssize_t n) {
    char name[PATH_MAX];
    struct stat st;
    if (n > 0 && is_file(fd, &st) && name_of(fd, name)) record('W', st.st_ino, offset, "", "", bytes, (size_t)n);
}
ssize_t write(int fd, const void *bytes, size_t n) {
    REAL(write);
    begin();
    ssize_t done = real(fd, bytes, n);
    /* Where it now ends is where it has been written, with O_APPEND too. */
    off64_t at = done > 0 ? lseek64(fd, 0, SEEK_CUR) : -1;
    if (at >= done) wrote(fd, (uint64_t)(at - done), bytes, done);
    end();
    return done;
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    begin();
    ssize_t done = real(fd, parts, n);
    off64_t at = done > 0 ? lseek64(fd, 0, SEEK_CUR) : -1;
    ssize_t left = done;
    uint64_t offset = (uint64_t)(at - done);
    for (int i = 0; at >= done && i < n && left > 0; i++) {
        ssize_t some = (ssize_t)parts[i].iov_len < left ? (ssize_t)parts[i].iov_len : left;
        wrote(fd, offset, parts[i].iov_base, some);
        offset += (uint64_t)some;
        left -= some;
    }
    end();
    return done;
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t offset) {
    REAL(pwrite64);
    begin();
    ssize_t done = real(fd, bytes, n, offset);
    wrote(fd, (uint64_t)offset, bytes, done);
    end();
    return done;
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset) { return pwrite64(fd, bytes, n, offset); }

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    begin();
    int result = real(fd, length);
    char name[PATH_MAX];
    struct stat st;
    if (result == 0 && is_file(fd, &st) && name_of(fd, name)) record('T', st.st_ino, (uint64_t)length, "", "", "", 0);
    end();
    return result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int synced(int fd, int (*real)(int)) {
    begin();
    int result = real(fd);
    char name[PATH_MAX];
    struct stat st;
    const char *recorded = result == 0 ? name_of(fd, name) : NULL;
    if (recorded && fstat(fd, &st) == 0) record(S_ISDIR(st.st_mode) ? 's' : 'S', st.st_ino, 0, recorded, "", "", 0);
    end();
    return result;
}
int fsync(int fd) {
    REAL(fsync);
    return synced(fd, real);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    return synced(fd, real);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    begin();
    int result = real(from, to);
    char a[PATH_MAX], b[PATH_MAX];
    const char *one = below(absolute(from, a)), *two = below(absolute(to, b));
    if (result == 0 && one && two) record('R', 0, 0, one, two, "", 0);
    end();
    return result;
}
int unlink(const char *path) {
    REAL(unlink);
    begin();
    int result = real(path);
    char a[PATH_MAX];
    const char *name = below(absolute(path, a));
    if (result == 0 && name) record('U', 0, 0, name, "", "", 0);
    end();
    return result;
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    begin();
    int result = real(path, mode);
    char a[PATH_MAX];
    const char *name = below(absolute(path, a));
    if (result == 0 && name) record('D', 0, 0, name, "", "", 0);
    end();
    return result;
}
