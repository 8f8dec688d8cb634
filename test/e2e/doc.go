// Package e2e tests whole daemons on the hosts of a lab: with a real etcd,
// real CNI plugins and real traffic.
package e2e
