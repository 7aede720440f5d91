package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Whoever presses ctrl-C twice does not want to wait for an orderly end.
	context.AfterFunc(ctx, stop)
	a := &app{fn: wired, in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv}
	err := newRoot(a).ExecuteContext(ctx)
	if err != nil {
		if text := message(err); text != "" {
			fmt.Fprintln(os.Stderr, "dozo: "+text)
		}
	}
	return exitCode(err)
}
