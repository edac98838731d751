/* The same client without a C library: every system call is an instruction in this file, as in a Go program.
 * Usage and output: client.h, without -s. Compile with -static -nostdlib -ffreestanding. */

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, SOCKET = 41, CONNECT = 42, GETPEERNAME = 52, EXIT = 60 };

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");

static long syscall3(long number, long first, long second, long third)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(first), "S"(second), "d"(third)
			 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, EXIT = 93, SOCKET = 198, CONNECT = 203, GETPEERNAME = 205 };

__asm__(".globl _start\n_start:\n\tmov x0, sp\n\tbl start\n");

static long syscall3(long number, long first, long second, long third)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = first;
	register long x1 __asm__("x1") = second;
	register long x2 __asm__("x2") = third;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return x0;
}
#else
#error "add the system call numbers and the instruction of this architecture"
#endif

enum { EXIT_USAGE = 200, EXIT_IO = 201 }; /* as in client.h */
enum { STDOUT = 1, STDERR = 2, FAMILY_INET = 2, STREAM = 1 };

struct inet_address { /* struct sockaddr_in */
	unsigned short family;
	unsigned char port[2];
	unsigned char address[4];
	unsigned char zero[8];
};

static char buffer[65536];

static void leave(long code)
{
	syscall3(EXIT, code, 0, 0);
	__builtin_unreachable();
}

static void write_all(long fd, const char *data, long size)
{
	while (size > 0) {
		long written = syscall3(WRITE, fd, (long)data, size);

		if (written <= 0)
			leave(EXIT_IO);
		data += written;
		size -= written;
	}
}

/* Reads a decimal number and steps over the character after it. */
static unsigned parse_number(const char **text)
{
	unsigned number = 0;

	if (**text < '0' || **text > '9')
		leave(EXIT_USAGE);
	while (**text >= '0' && **text <= '9')
		number = number * 10 + (unsigned)(*(*text)++ - '0');
	if (**text)
		(*text)++;
	return number;
}

/* Writes the number and the character after it to stderr. */
static void print_number(unsigned number, char after)
{
	char text[12];
	int at = sizeof text;

	text[--at] = after;
	do
		text[--at] = (char)('0' + number % 10);
	while (number /= 10);
	write_all(STDERR, text + at, (long)sizeof text - at);
}

static void print_peer(const struct inet_address *peer)
{
	write_all(STDERR, "peer ", 5);
	for (int i = 0; i < 4; i++)
		print_number(peer->address[i], i < 3 ? '.' : ':');
	print_number(peer->port[0] * 256u + peer->port[1], '\n');
}

static long talk(long fd, int banner)
{
	static const char request[] = "GET / HTTP/1.0\r\n\r\n";
	long size;

	if (!banner)
		write_all(fd, request, sizeof request - 1);
	while ((size = syscall3(READ, fd, (long)buffer, sizeof buffer)) > 0) {
		write_all(STDOUT, buffer, size);
		if (banner && buffer[size - 1] == '\n')
			return 0;
	}
	return size == 0 ? 0 : EXIT_IO;
}

__attribute__((used, noreturn)) void start(long *stack)
{
	int argc = (int)stack[0];
	const char **argv = (const char **)(stack + 1);
	int banner = argc == 4 && argv[1][0] == '-' && argv[1][1] == 'b';
	struct inet_address address = { .family = FAMILY_INET };
	unsigned length = sizeof address;
	const char *text;
	unsigned port;
	long fd, result;

	if (argc != 3 + banner)
		leave(EXIT_USAGE);
	text = argv[1 + banner];
	for (int i = 0; i < 4; i++)
		address.address[i] = (unsigned char)parse_number(&text);
	text = argv[2 + banner];
	port = parse_number(&text);
	address.port[0] = (unsigned char)(port >> 8);
	address.port[1] = (unsigned char)port;

	fd = syscall3(SOCKET, FAMILY_INET, STREAM, 0);
	if (fd < 0)
		leave(EXIT_IO);
	result = syscall3(CONNECT, fd, (long)&address, sizeof address);
	if (result != 0)
		leave(-result);
	if (syscall3(GETPEERNAME, fd, (long)&address, (long)&length) != 0)
		leave(EXIT_IO);
	print_peer(&address);
	leave(talk(fd, banner));
	__builtin_unreachable();
}
