// See ../python/main.py.
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const first, large, last = "1 count", "5 large", "9 count"

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func write(path, content string) { must(os.WriteFile(path, []byte(content), 0o644)) }

func count() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	var files [2]*os.File
	for i, name := range []string{first, last} {
		file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
		must(err)
		files[i] = file
	}
	var data [8]byte
	for number := uint64(1); ; number++ {
		binary.LittleEndian.PutUint64(data[:], number)
		files[0].WriteAt(data[:], 0)
		files[1].WriteAt(data[:], 0)
	}
}

func leaveAWriter() {
	writer := exec.Command("/proc/self/exe", "count")
	writer.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must(writer.Start())
	for {
		if info, err := os.Stat(last); err == nil && info.Size() > 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func main() {
	must(os.Chdir("/output"))
	if len(os.Args) > 1 {
		count()
	}
	write("a file", "honest\n")
	must(os.Link("a file", "hard link"))
	must(os.Symlink("/etc/passwd", "link"))
	must(os.Symlink("/proc/self/environ", "link to proc"))
	must(os.Symlink("/etc", "link to a folder"))
	must(syscall.Mkfifo("pipe", 0o600))
	_, err := net.Listen("unix", "socket")
	must(err)
	for _, name := range []string{"new\nline", "\xff\xfe", "...", "%2e%2e", "a?b#c"} {
		write(name, name)
	}
	must(os.Mkdir("closed", 0o755))
	write("closed/in", "in")
	must(os.Chmod("closed", 0))
	write("unreadable", "unreadable")
	must(os.Chmod("unreadable", 0))
	write("set-user-id", "suid")
	must(syscall.Chmod("set-user-id", 0o6755))
	write("sparse", "")
	must(os.Truncate("sparse", 9<<20))
	must(os.MkdirAll("deep"+strings.Repeat("/d", 40), 0o755))
	write(large, strings.Repeat("x", 6<<20))
	leaveAWriter()
	fmt.Println("left")
}
