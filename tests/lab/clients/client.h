/* What the clients that use the C library share: arguments, the dialogue, and saying who the peer is.
 *
 * Usage of every client: NAME [-b] [-s] ADDRESS PORT
 *   default  send "GET / HTTP/1.0", copy the answer to stdout until its end
 *   -b       send nothing, copy one line to stdout (a server that speaks first)
 *   -s       first make sure that the program runs setuid root: effective user 0, real user another
 * stderr: "peer A.B.C.D:PORT", as getpeername(2) says.
 * Exit code: 0; errno of connect(2); or one of the numbers below, above every errno.
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EXIT_USAGE = 200, EXIT_IO = 201, EXIT_NOT_SETUID = 202 };

struct arguments {
	int banner;
	struct in_addr address;
	in_port_t port; /* network byte order */
};

static struct arguments parse_arguments(int argc, char **argv)
{
	struct arguments arguments = { 0 };
	int option;

	while ((option = getopt(argc, argv, "bs")) != -1) {
		if (option == 'b')
			arguments.banner = 1;
		else if (option != 's')
			exit(EXIT_USAGE);
		else if (geteuid() != 0 || getuid() == 0)
			exit(EXIT_NOT_SETUID);
	}
	if (argc - optind != 2 || inet_pton(AF_INET, argv[optind], &arguments.address) != 1)
		exit(EXIT_USAGE);
	arguments.port = htons((in_port_t)atoi(argv[optind + 1]));
	return arguments;
}

/* A no-op for a blocking socket. */
static void wait_for(int fd, short events)
{
	struct pollfd entry = { .fd = fd, .events = events };

	if (poll(&entry, 1, -1) != 1)
		exit(EXIT_IO);
}

static void print_peer(struct in_addr address, in_port_t port)
{
	char text[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &address, text, sizeof text);
	fprintf(stderr, "peer %s:%d\n", text, ntohs(port));
}

/* Send the request, copy the answer. Works on blocking and non-blocking sockets; returns the exit code. */
static int talk(int fd, int banner)
{
	static const char request[] = "GET / HTTP/1.0\r\n\r\n";
	char buffer[65536];
	ssize_t size;

	/* So short a request fits into an empty send buffer in one piece. */
	if (!banner && write(fd, request, sizeof request - 1) != sizeof request - 1)
		return EXIT_IO;
	for (;;) {
		wait_for(fd, POLLIN);
		size = read(fd, buffer, sizeof buffer);
		if (size < 0 && errno == EAGAIN)
			continue;
		if (size < 0)
			return EXIT_IO;
		if (size == 0)
			return 0;
		if (fwrite(buffer, 1, (size_t)size, stdout) != (size_t)size || fflush(stdout) != 0)
			return EXIT_IO;
		if (banner && memchr(buffer, '\n', (size_t)size))
			return 0;
	}
}

#endif
