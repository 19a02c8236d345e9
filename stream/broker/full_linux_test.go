package broker

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nearmiss/nearmiss/internal/eventually"
)

// smallDisk is the folder on which the child of a test mounts a disk of its own.
const smallDisk = "NEARMISS_TEST_SMALL_DISK"

// TestADiskThatWasFull: a stream that meets a full disk takes messages again when there is
// room, without anybody's help, and has what it had.
func TestADiskThatWasFull(t *testing.T) {
	dir := os.Getenv(smallDisk)
	if dir == "" {
		child := exec.Command(os.Args[0], "-test.run=^TestADiskThatWasFull$", "-test.v")
		child.Env = append(os.Environ(), smallDisk+"="+t.TempDir())
		child.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		out, err := child.CombinedOutput()
		switch {
		case len(out) == 0 && err != nil:
			t.Skipf("this system gives no namespace of its own: %v", err)
		case strings.Contains(string(out), "--- SKIP"):
			t.Skip("this system mounts no disk in a namespace")
		case err != nil:
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skip(err)
	}
	b, _ := started(t, Config{StoreDir: filepath.Join(dir, "store")}, nil)
	js := withStream(t, b.ClientURL())
	publish := func() bool { _, err := js.Publish("s", make([]byte, 64<<10)); return err == nil }
	if !publish() {
		t.Fatal("nothing is taken")
	}
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 80<<20), 0o600); !isFull(err) {
		t.Fatalf("the disk is not full: %v", err)
	}
	stored := uint64(1)
	for publish() {
		stored++
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "messages are taken again", publish)
	if i, err := js.StreamInfo("S", long); err != nil || i.State.Msgs < stored+1 {
		t.Errorf("%d messages were stored, %+v, %v", stored+1, i, err)
	}
	eventually.True(t, "it is not said to be full any more", func() bool { return b.Full() == "" })
}
