/* connect(2) on a non-blocking socket, then poll(2) and SO_ERROR: what every event loop does. */
#include "client.h"

static int connect_error(int fd)
{
	int error;
	socklen_t length = sizeof error;

	wait_for(fd, POLLOUT);
	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : EXIT_IO;
}

int main(int argc, char **argv)
{
	struct arguments arguments = parse_arguments(argc, argv);
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr = arguments.address, .sin_port = arguments.port
	};
	socklen_t length = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int error = 0;

	if (fd < 0)
		return EXIT_IO;
	if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
		error = errno == EINPROGRESS ? connect_error(fd) : errno;
	if (error != 0)
		return error;
	if (getpeername(fd, (struct sockaddr *)&address, &length) != 0)
		return EXIT_IO;
	print_peer(address.sin_addr, address.sin_port);
	return talk(fd, arguments.banner);
}
