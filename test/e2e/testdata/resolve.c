/* Prints the addresses of a name, one in a line, as the C library's resolver
 * finds them. */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *all, *a;
	char text[INET6_ADDRSTRLEN];
	int err;

	if (argc != 2)
		return 2;
	if ((err = getaddrinfo(argv[1], NULL, &hints, &all))) {
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(err));
		return 1;
	}
	for (a = all; a; a = a->ai_next) {
		const void *addr = a->ai_family == AF_INET6 ? (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr
							    : (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr;
		puts(inet_ntop(a->ai_family, addr, text, sizeof text));
	}
	return 0;
}
