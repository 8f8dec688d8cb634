package main

import "context"

func (b *bench) drained(ctx context.Context) error { return nil }
