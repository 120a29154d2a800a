/*
 * A VMM without a machine: only what a host with a thousand VMs needs to be checked, in about 100 KiB each.
 *
 * Takes `--api-sock PATH --id ID` like Firecracker, answers `GET /` with this id and its state, and every PUT with 204;
 * the state is "Running" from the action InstanceStart on. It judges nothing else: what Firecracker would refuse, this
 * accepts. With TINYVMM_BOOT_MS, InstanceStart is answered so many milliseconds late, and nothing else meanwhile.
 * Ends when the process named in the environment variable TINYVMM_OWNER has ended, so that a benchmark that was killed
 * leaves nothing behind.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 128, LISTENER = 0, OWNER = 1, FIRST_CLIENT = 2, PLACES = 18, REQUEST_BYTES = 8192 };

struct request {
    size_t have;
    char text[REQUEST_BYTES + 1];
};

static struct pollfd places[PLACES];
static struct request requests[PLACES];
static const char *id;
static const char *state = "Not started";
static int boot_ms;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static const char *flag(int argc, char **argv, const char *name) {
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    fprintf(stderr, "%s is missing\n", name);
    exit(153);
}

static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "%s is too long\n", path);
        exit(1);
    }
    strcpy(address.sun_path, path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, BACKLOG) < 0)
        die(path);
    return fd;
}

static int owner_fd(void) {
    const char *owner = getenv("TINYVMM_OWNER");
    if (owner == NULL)
        return -1;
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)atoi(owner), 0);
    if (fd < 0)
        die("TINYVMM_OWNER");
    return fd;
}

static void hang_up(int place) {
    close(places[place].fd);
    places[place].fd = -1;
}

static void take_client(void) {
    int fd = accept4(places[LISTENER].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    for (int place = FIRST_CLIENT; place < PLACES; place++)
        if (places[place].fd < 0) {
            places[place] = (struct pollfd){.fd = fd, .events = POLLIN};
            requests[place].have = 0;
            return;
        }
    close(fd);
}

/* Bytes of the first request in the text, 0 while it is not complete. */
static size_t complete(const char *text, size_t have) {
    const char *end = strstr(text, "\r\n\r\n");
    if (end == NULL)
        return 0;
    const char *field = strcasestr(text, "\r\ncontent-length:");
    size_t body = field != NULL && field < end ? strtoul(field + 17, NULL, 10) : 0;
    size_t all = (size_t)(end - text) + 4 + body;
    return all <= have ? all : 0;
}

static int answer(char *to, size_t room, const char *text, size_t length) {
    char body[256];
    if (strncmp(text, "PUT ", 4) == 0) {
        if (memmem(text, length, "InstanceStart", 13) != NULL) {
            poll(NULL, 0, boot_ms);
            state = "Running";
        }
        return snprintf(to, room, "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n");
    }
    snprintf(body, sizeof body, "{\"id\":\"%s\",\"state\":\"%s\",\"vmm_version\":\"1.17.0\",\"app_name\":\"Firecracker\"}",
             id, state);
    return snprintf(to, room,
                    "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
                    "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                    strlen(body), body);
}

static void serve(int place) {
    struct request *request = &requests[place];
    char out[512];
    size_t length;
    ssize_t got = read(places[place].fd, request->text + request->have, REQUEST_BYTES - request->have);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        hang_up(place);
        return;
    }
    request->have += (size_t)got;
    request->text[request->have] = '\0';
    while ((length = complete(request->text, request->have)) > 0) {
        int said = answer(out, sizeof out, request->text, length);
        if (send(places[place].fd, out, (size_t)said, MSG_NOSIGNAL) != said) {
            hang_up(place);
            return;
        }
        request->have -= length;
        memmove(request->text, request->text + length, request->have + 1);
    }
    if (request->have == REQUEST_BYTES)
        hang_up(place);
}

int main(int argc, char **argv) {
    id = flag(argc, argv, "--id");
    boot_ms = getenv("TINYVMM_BOOT_MS") != NULL ? atoi(getenv("TINYVMM_BOOT_MS")) : 0;
    for (int place = 0; place < PLACES; place++)
        places[place].fd = -1;
    places[OWNER] = (struct pollfd){.fd = owner_fd(), .events = POLLIN};
    places[LISTENER] = (struct pollfd){.fd = listen_at(flag(argc, argv, "--api-sock")), .events = POLLIN};
    for (;;) {
        if (poll(places, PLACES, -1) < 0 && errno != EINTR)
            die("poll");
        if (places[OWNER].fd >= 0 && places[OWNER].revents != 0)
            return 0;
        for (int place = FIRST_CLIENT; place < PLACES; place++)
            if (places[place].fd >= 0 && places[place].revents != 0)
                serve(place);
        if (places[LISTENER].revents != 0)
            take_client();
    }
}
