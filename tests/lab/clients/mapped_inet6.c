/* IPv4 through an AF_INET6 socket, as dual-stack programs (Java, many servers) do: connects to ::ffff:A.B.C.D. */
#include "client.h"

int main(int argc, char **argv)
{
	struct arguments arguments = parse_arguments(argc, argv);
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = arguments.port };
	socklen_t length = sizeof address;
	struct in_addr peer;
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	if (fd < 0)
		return EXIT_IO;
	address.sin6_addr.s6_addr[10] = address.sin6_addr.s6_addr[11] = 0xff;
	memcpy(&address.sin6_addr.s6_addr[12], &arguments.address, 4);
	if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
		return errno;
	if (getpeername(fd, (struct sockaddr *)&address, &length) != 0 || !IN6_IS_ADDR_V4MAPPED(&address.sin6_addr))
		return EXIT_IO;
	memcpy(&peer, &address.sin6_addr.s6_addr[12], 4);
	print_peer(peer, address.sin6_port);
	return talk(fd, arguments.banner);
}
