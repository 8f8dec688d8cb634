package wireguard_test

import "golang.org/x/sys/unix"

// syscallPeer is the process at the other end of a unix socket.
func syscallPeer(fd int) (int32, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return cred.Pid, nil
}
