/* A blocking IPv4 connect(2) from a statically linked program: nothing can be preloaded into it.
 * With the setuid bit on it, the dynamic loader would refuse to preload in any case. */
#include "client.h"

int main(int argc, char **argv)
{
	struct arguments arguments = parse_arguments(argc, argv);
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr = arguments.address, .sin_port = arguments.port
	};
	socklen_t length = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		return EXIT_IO;
	if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
		return errno;
	if (getpeername(fd, (struct sockaddr *)&address, &length) != 0)
		return EXIT_IO;
	print_peer(address.sin_addr, address.sin_port);
	return talk(fd, arguments.banner);
}
