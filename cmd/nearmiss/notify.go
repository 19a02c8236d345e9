package main

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// notify tells the process that started this one how it is, where that wants to
// know (sd_notify(3)): READY=1, STOPPING=1, WATCHDOG=1.
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if rest, ok := strings.CutPrefix(name, "@"); ok {
		name = "\x00" + rest
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}

// keepAlive gives a sign of life twice in the time after which the starter takes
// this process for dead, until ctx ends (sd_watchdog_enabled(3)).
func keepAlive(ctx context.Context) {
	us, err := strconv.Atoi(os.Getenv("WATCHDOG_USEC"))
	if pid := os.Getenv("WATCHDOG_PID"); err != nil || us < 1 || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return
	}
	t := time.Tick(time.Duration(us) * time.Microsecond / 2)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t:
			notify("WATCHDOG=1")
		}
	}
}
