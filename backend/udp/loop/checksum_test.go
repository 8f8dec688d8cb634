package loop

import "testing"

// BenchmarkSum is of one full packet.
func BenchmarkSum(b *testing.B) {
	buf := make([]byte, 1452)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		sum(buf, 0)
	}
}
