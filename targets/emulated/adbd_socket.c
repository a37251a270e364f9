/* Preloaded into adbd: its one socket for hosts is a file, SOCKET, that only this user can open.
 *
 * By itself adbd listens to everybody on every network, and gives whoever comes a shell. Its other sockets, for
 * the debuggers of Java programs and for a hypervisor, are refused; it goes on without them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

/* What adbd starts must not inherit this library. */
__attribute__((constructor)) static void once(void)
{
    unsetenv("LD_PRELOAD");
}

int socket(int family, int type, int protocol)
{
    int (*system_socket)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    if (family == AF_INET6) return system_socket(AF_UNIX, type, 0);
    if (family == AF_UNIX) return system_socket(family, type, protocol);
    errno = EAFNOSUPPORT;
    return -1;
}

int bind(int fd, const struct sockaddr *wanted, socklen_t length)
{
    static const struct sockaddr_un file = {AF_UNIX, SOCKET};
    typedef int (*Bind)(int, const struct sockaddr *, socklen_t);
    (void)length;
    if (wanted->sa_family == AF_INET6)
        return ((Bind)dlsym(RTLD_NEXT, "bind"))(fd, (const struct sockaddr *)&file, sizeof file);
    errno = EACCES;
    return -1;
}
