/* Both ends of the benchmark's load, apart from HTTP: what is measured is the way between them.
 *
 *   load serve PORT COUNTER                   the server; prints "ready"
 *   load flows up|down N ADDRESS PORT SECONDS COUNTER
 *                                             N busy connections; prints "busy" once all carry data, then one result
 *   load ping ADDRESS PORT SECONDS [INTERVAL_US]
 *                                             one byte there and back, again and again, on one connection; without an
 *                                             interval each at once after the other, with one at its times: an answer
 *                                             that is late delays the next ones, and they are counted from their time
 *   load first ADDRESS PORT SECONDS           connect, one byte there and back, close; again and again
 *   load hold N ADDRESS PORT                  N connections that had their byte, then are idle; prints "held"
 *
 * The first byte of a connection says what it is: KIND_ECHO is answered with what comes, KIND_UP is read and thrown
 * away, KIND_DOWN is sent to without end. COUNTER is a file of 8 bytes that both ends map: the bytes that arrived in
 * KIND_UP connections, for only the receiving end knows what did not get stuck in a buffer on the way.
 * Results are one line of JSON. Exit code 1, with the reason on stderr, when anything fails.
 * Connections are made blocking and before any epoll knows them, so that the LD_PRELOAD library can exchange them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK_BYTES = 128 * 1024, MAX_EVENTS = 256, MAX_FDS = 1 << 20, BACKLOG = 32768, GRACE_S = 30 };
enum { WARM_UP_MS = 200, WARM_UP_PINGS = 200, MAX_SAMPLES = 4 << 20 };
enum { KIND_UNKNOWN = 0, KIND_ECHO = 'e', KIND_UP = 'u', KIND_DOWN = 'd' };

struct target {
	struct sockaddr_storage address;
	socklen_t size;
};

static char kind_of[MAX_FDS];
static char chunk[CHUNK_BYTES]; /* of the one thread that moves bulk data; its content does not matter */
static _Atomic uint64_t *arrived_bytes;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void map_counter(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, sizeof *arrived_bytes) != 0)
		err(1, "%s", path);
	arrived_bytes = mmap(NULL, sizeof *arrived_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (arrived_bytes == MAP_FAILED)
		err(1, "mmap");
}

static int new_epoll(void)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);

	if (fd < 0)
		err(1, "epoll_create1");
	return fd;
}

static void watch(int epoll_fd, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		err(1, "epoll_ctl");
}

static void set_nodelay(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* ---- server ---- */

/* Move what can be moved at once; 0 when the connection has ended. */
static int move_bulk(int fd, int receive)
{
	ssize_t size = receive ? recv(fd, chunk, sizeof chunk, 0) : send(fd, chunk, sizeof chunk, MSG_NOSIGNAL);

	if (size > 0 && receive)
		atomic_fetch_add_explicit(arrived_bytes, (uint64_t)size, memory_order_relaxed);
	return size > 0 || (size < 0 && errno == EAGAIN);
}

static void *serve_bulk(void *argument)
{
	int epoll_fd = *(int *)argument;
	struct epoll_event events[MAX_EVENTS];

	for (;;) {
		int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);

		for (int i = 0; i < count; i++) {
			int fd = events[i].data.fd;

			if (!move_bulk(fd, kind_of[fd] == KIND_UP))
				close(fd);
		}
	}
	return NULL;
}

static void accept_all(int listener, int epoll_fd)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (fd >= MAX_FDS)
			errx(1, "too many connections");
		kind_of[fd] = KIND_UNKNOWN;
		set_nodelay(fd);
		watch(epoll_fd, fd, EPOLLIN);
	}
	if (errno != EAGAIN && errno != ECONNABORTED)
		err(1, "accept4");
}

static void answer(int fd, int epoll_fd, int bulk_epoll_fd)
{
	char buffer[4096];
	ssize_t size = recv(fd, buffer, sizeof buffer, 0);

	if (size < 0 && errno == EAGAIN)
		return;
	if (size <= 0) {
		close(fd);
		return;
	}
	if (kind_of[fd] == KIND_UNKNOWN)
		kind_of[fd] = buffer[0];
	if (kind_of[fd] == KIND_ECHO) {
		if (send(fd, buffer, (size_t)size, MSG_NOSIGNAL) != size)
			close(fd);
		return;
	}
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
	watch(bulk_epoll_fd, fd, kind_of[fd] == KIND_UP ? EPOLLIN : EPOLLOUT);
}

static void serve(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
	int on = 1, epoll_fd = new_epoll(), bulk_epoll_fd = new_epoll();
	int listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct epoll_event events[MAX_EVENTS];
	pthread_t bulk;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&any, sizeof any) != 0 || listen(listener, BACKLOG) != 0)
		err(1, "port %d", port);
	watch(epoll_fd, listener, EPOLLIN);
	if (pthread_create(&bulk, NULL, serve_bulk, &bulk_epoll_fd) != 0)
		errx(1, "pthread_create");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);

		for (int i = 0; i < count; i++) {
			if (events[i].data.fd == listener)
				accept_all(listener, epoll_fd);
			else
				answer(events[i].data.fd, epoll_fd, bulk_epoll_fd);
		}
	}
}

/* ---- client ---- */

static struct target parse_target(const char *address, const char *port)
{
	struct target target = { .size = sizeof(struct sockaddr_in) };
	struct sockaddr_in *v4 = (struct sockaddr_in *)&target.address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&target.address;

	if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)atoi(port));
	} else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
		target.size = sizeof *v6;
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons((uint16_t)atoi(port));
	} else {
		errx(1, "%s is not an address", address);
	}
	return target;
}

static int open_connection(const struct target *target, char kind)
{
	int fd = socket(target->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)&target->address, target->size) != 0)
		err(1, "connect");
	set_nodelay(fd);
	if (send(fd, &kind, 1, MSG_NOSIGNAL) != 1)
		err(1, "send");
	return fd;
}

static void read_byte(int fd)
{
	char byte;
	ssize_t size = recv(fd, &byte, 1, 0);

	if (size != 1)
		errx(1, "recv: %s", size ? strerror(errno) : "the connection was closed");
}

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

static void print_percentiles(uint32_t *samples_ns, size_t count)
{
	static const struct {
		const char *name;
		double share;
	} wanted[] = { { "p50_us", 0.5 }, { "p99_us", 0.99 }, { "p999_us", 0.999 } };

	qsort(samples_ns, count, sizeof *samples_ns, compare);
	printf("{\"count\": %zu", count);
	for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) /* nearest rank */
		printf(", \"%s\": %.3f", wanted[i].name, samples_ns[(size_t)((double)(count - 1) * wanted[i].share + 0.5)] / 1e3);
	puts("}");
}

/* Sleep until then, if it is not past; the time from which to count. */
static uint64_t wait_until(uint64_t due_ns)
{
	struct timespec due = { .tv_sec = (time_t)(due_ns / 1000000000u), .tv_nsec = (long)(due_ns % 1000000000u) };

	if (now_ns() >= due_ns)
		return due_ns;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	return now_ns();
}

/* Time exchanges until `seconds` are over, but at least one. `every_time`: a new connection for each. The first ones
 * do not count, unless they take so long that they are what there is to tell. */
static void time_exchanges(const struct target *target, double seconds, int every_time, uint64_t interval_ns)
{
	static uint32_t samples_ns[MAX_SAMPLES];
	size_t count = 0, skip = every_time ? 1 : WARM_UP_PINGS;
	int fd = -1;
	uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * 1e9), due = begin, start, stop;

	do {
		start = interval_ns ? wait_until(due += interval_ns) : now_ns();
		if (fd < 0)
			fd = open_connection(target, KIND_ECHO);
		else if (send(fd, "x", 1, MSG_NOSIGNAL) != 1)
			err(1, "send");
		read_byte(fd);
		stop = now_ns();
		if (every_time) {
			close(fd);
			fd = -1;
		}
		if (skip && stop - begin < (end - begin) / 4)
			skip--;
		else
			samples_ns[count++] = stop - start > UINT32_MAX ? UINT32_MAX : (uint32_t)(stop - start);
	} while (stop < end && count < MAX_SAMPLES);
	print_percentiles(samples_ns, count);
}

static void hold(const struct target *target, int count)
{
	for (int i = 0; i < count; i++)
		read_byte(open_connection(target, KIND_ECHO));
	puts("held");
	fflush(stdout);
	alarm(0);
	pause();
}

/* Keep every flow busy for a while; the bytes that arrived. */
static uint64_t keep_busy(int epoll_fd, int receive, uint64_t until_ns)
{
	struct epoll_event events[MAX_EVENTS];
	uint64_t received_bytes = 0;

	while (now_ns() < until_ns) {
		int count = epoll_wait(epoll_fd, events, MAX_EVENTS, 10);

		for (int i = 0; i < count; i++) {
			int fd = events[i].data.fd;
			ssize_t size = receive ? recv(fd, chunk, sizeof chunk, 0) : send(fd, chunk, sizeof chunk, MSG_NOSIGNAL);

			if (size > 0)
				received_bytes += (uint64_t)size;
			else if (size == 0 || errno != EAGAIN)
				errx(1, "a flow ended: %s", size ? strerror(errno) : "closed");
		}
	}
	return received_bytes;
}

static void flows(const struct target *target, int count, double seconds, int receive)
{
	struct linger reset_at_close = { .l_onoff = 1 }; /* what is under way is not waited for */
	uint64_t total, measured, counted, begin;
	int epoll_fd = new_epoll();

	total = atomic_load(arrived_bytes);
	for (int i = 0; i < count; i++) {
		int fd = open_connection(target, receive ? KIND_DOWN : KIND_UP);

		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset_at_close, sizeof reset_at_close);
		fcntl(fd, F_SETFL, O_NONBLOCK);
		watch(epoll_fd, fd, receive ? EPOLLIN : EPOLLOUT);
	}
	counted = keep_busy(epoll_fd, receive, now_ns() + WARM_UP_MS * 1000000u);
	puts("busy");
	fflush(stdout);
	begin = now_ns();
	measured = atomic_load(arrived_bytes);
	total = receive ? counted : measured - total;
	counted = keep_busy(epoll_fd, receive, begin + (uint64_t)(seconds * 1e9));
	measured = receive ? counted : atomic_load(arrived_bytes) - measured;
	printf("{\"bytes\": %ju, \"seconds\": %.6f, \"total_bytes\": %ju}\n", (uintmax_t)measured,
	       (double)(now_ns() - begin) / 1e9, (uintmax_t)(total + measured));
}

static void allow_many_files(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	struct target target;

	allow_many_files();
	if (strcmp(command, "serve") == 0 && argc == 4) {
		map_counter(argv[3]);
		serve(atoi(argv[2]));
	} else if (strcmp(command, "hold") == 0 && argc == 5) {
		target = parse_target(argv[3], argv[4]);
		alarm(4 * GRACE_S);
		hold(&target, atoi(argv[2]));
	} else if (strcmp(command, "flows") == 0 && argc == 8) {
		target = parse_target(argv[4], argv[5]);
		map_counter(argv[7]);
		alarm(GRACE_S + (unsigned)atoi(argv[6]));
		flows(&target, atoi(argv[3]), atof(argv[6]), strcmp(argv[2], "down") == 0);
	} else if ((strcmp(command, "ping") == 0 && argc == 6) ||
		   ((strcmp(command, "ping") == 0 || strcmp(command, "first") == 0) && argc == 5)) {
		target = parse_target(argv[2], argv[3]);
		alarm(GRACE_S + (unsigned)atoi(argv[4]));
		time_exchanges(&target, atof(argv[4]), strcmp(command, "first") == 0,
			       argc == 6 ? (uint64_t)atoi(argv[5]) * 1000u : 0);
	} else {
		errx(2, "see the head of load.c");
	}
	return 0;
}
