/*
 * The packet loop of flannel's udp backend, its kind: one thread, one packet
 * per system call, a plain TUN device, a list of subnets that is searched from
 * its beginning. What the udp driver is compared with.
 *
 * usage: udploop DEVICE LOCAL PORT [NETWORK/LENGTH PUBLIC]...
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer {
	in_addr_t network, mask;
	struct sockaddr_in at;
};

static struct peer peers[256];
static int count;
static char packet[65536];

static void die(const char *what) {
	perror(what);
	exit(1);
}

static struct sockaddr_in *find(in_addr_t to) {
	for (int i = 0; i < count; i++) {
		if ((to & peers[i].mask) == peers[i].network) {
			struct peer p = peers[i];
			peers[i] = peers[0];
			peers[0] = p;
			return &peers[0].at;
		}
	}
	return NULL;
}

/* One hop less, and the checksum with it (RFC 1624). */
static int hop(struct iphdr *h) {
	if (--h->ttl == 0)
		return 0;
	uint32_t sum = (uint32_t)h->check + htons(0x100);
	h->check = sum + (sum >= 0xffff);
	return 1;
}

static int out(int tun, int sock) {
	ssize_t n = read(tun, packet, sizeof packet);
	struct iphdr *h = (struct iphdr *)packet;
	if (n < (ssize_t)sizeof *h)
		return 0;
	struct sockaddr_in *to = find(h->daddr);
	if (to && hop(h))
		sendto(sock, packet, n, 0, (struct sockaddr *)to, sizeof *to);
	return 1;
}

static int in(int sock, int tun) {
	ssize_t n = recv(sock, packet, sizeof packet, MSG_DONTWAIT);
	struct iphdr *h = (struct iphdr *)packet;
	if (n < (ssize_t)sizeof *h)
		return 0;
	if (hop(h))
		while (write(tun, packet, n) < 0 && errno == EAGAIN)
			;
	return 1;
}

int main(int argc, char **argv) {
	if (argc < 4) {
		fprintf(stderr, "usage: udploop DEVICE LOCAL PORT [NETWORK/LENGTH PUBLIC]...\n");
		return 2;
	}
	int tun = open("/dev/net/tun", O_RDWR);
	if (tun < 0)
		die("/dev/net/tun");
	struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	strncpy(r.ifr_name, argv[1], IFNAMSIZ - 1);
	if (ioctl(tun, TUNSETIFF, &r) < 0)
		die(argv[1]);
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
	inet_pton(AF_INET, argv[2], &at.sin_addr);
	if (bind(sock, (struct sockaddr *)&at, sizeof at) < 0)
		die(argv[2]);
	for (int i = 4; i + 1 < argc && count < 256; i += 2, count++) {
		char *bits = strchr(argv[i], '/');
		if (!bits)
			die(argv[i]);
		*bits++ = 0;
		struct peer *p = &peers[count];
		p->at = at;
		p->mask = htonl(~0u << (32 - atoi(bits)));
		inet_pton(AF_INET, argv[i], &p->network);
		inet_pton(AF_INET, argv[i + 1], &p->at.sin_addr);
	}
	fcntl(tun, F_SETFL, O_NONBLOCK);
	printf("ready\n");
	fflush(stdout);
	struct pollfd fds[] = {{.fd = tun, .events = POLLIN}, {.fd = sock, .events = POLLIN}};
	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			die("poll");
		int moved;
		do { /* as long as there is anything, not to wait is cheaper */
			moved = out(tun, sock);
			moved += in(sock, tun);
		} while (moved);
	}
}
