package lab

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dozo/internal/lab/router"
)

// ServeRouter is the router's process (dozo lab router), which Up starts. It says on file 3 when it is ready.
func ServeRouter(ctx context.Context, name string, log io.Writer) error {
	if err := needRoot(); err != nil {
		return err
	}
	if err := router.Harden(); err != nil {
		return err
	}
	dir := stateDir(name)
	text, err := os.ReadFile(filepath.Join(dir, routerFile))
	if err != nil {
		return err
	}
	var cfg router.Config
	if err := json.Unmarshal(text, &cfg); err != nil {
		return err
	}
	ready := func() {
		f := os.NewFile(3, "ready")
		_, werr := f.WriteString(readyWord)
		if err := errors.Join(werr, f.Close()); err != nil {
			slog.New(slog.NewTextHandler(log, nil)).Warn("nobody waits for the router", "err", err)
		}
	}
	unix.CloseOnExec(3)
	return router.Run(ctx, cfg, filepath.Join(dir, socketFile), slog.New(slog.NewTextHandler(log, nil)), ready)
}
