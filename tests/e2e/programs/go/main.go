// Does what the input's `case` says; see ../python/main.py.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type input struct {
	Case      string `json:"case"`
	Megabytes int    `json:"megabytes"`
	Say       string `json:"say"`
}

func allocate(megabytes int) []byte {
	held := make([]byte, megabytes<<20)
	for i := 0; i < len(held); i += 4096 {
		held[i] = 1
	}
	return held
}

func files() {
	os.MkdirAll("/output/folder/하위", 0o755)
	os.WriteFile("/output/a.txt", []byte("one"), 0o644)
	os.WriteFile("/output/folder/b.json", []byte("{}"), 0o644)
	os.WriteFile("/output/folder/하위/결과 1.csv", []byte("x,y\n"), 0o644)
	os.Symlink("/etc/passwd", "/output/link")
	syscall.Mkfifo("/output/pipe", 0o600)
}

func main() {
	if len(os.Args) > 1 { // the child of oom_child
		fmt.Println(len(allocate(400)))
		return
	}
	var payload input
	if err := json.Unmarshal([]byte(os.Getenv("PAYLOAD")), &payload); err != nil {
		panic(err)
	}
	switch payload.Case {
	case "report":
		stdin, _ := io.ReadAll(os.Stdin)
		file, _ := os.ReadFile(os.Getenv("PAYLOAD_FILE"))
		fmt.Println("stdout: 안녕, мир 🌍")
		fmt.Fprintln(os.Stderr, "stderr: 오류 아님")
		out, _ := json.Marshal(map[string]string{"env": os.Getenv("PAYLOAD"), "file": string(file), "stdin": string(stdin)})
		fmt.Println(string(out))
	case "exit":
		os.Exit(3)
	case "raise":
		panic("없는 키")
	case "signal":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "hang":
		time.Sleep(1000 * time.Second)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		child := exec.Command("sh", "-c", "trap '' TERM; sleep 1000")
		child.Stdout = os.Stdout
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		child.Start()
		fmt.Println("still here")
		time.Sleep(1000 * time.Second)
	case "oom":
		fmt.Println(len(allocate(400)))
	case "oom_child":
		exec.Command(os.Args[0], "child").Run()
	case "flood":
		line := strings.Repeat("x", 999) + "\n"
		for i := 0; i < 20000; i++ {
			os.Stdout.WriteString(line)
		}
		fmt.Println("the end")
	case "files":
		files()
	case "files_then_fail":
		files()
		os.Exit(1)
	case "peak":
		held := allocate(payload.Megabytes)
		status, _ := os.ReadFile("/proc/self/status")
		var kib int
		fmt.Sscan(strings.SplitN(string(status), "RssAnon:", 2)[1], &kib)
		fmt.Println(kib * 1024)
		fmt.Fprint(io.Discard, held[0])
	case "large_file":
		file, _ := os.Create("/tmp/f")
		if err := file.Truncate(600 << 20); err != nil {
			panic(err)
		}
	case "large_file_child":
		seek := fmt.Sprintf("seek=%d", 512<<20-1)
		if exec.Command("dd", "if=/dev/zero", "of=/tmp/f", "bs=1", "count=2", seek).Run() != nil {
			os.Exit(1)
		}
	case "quick":
		fmt.Println(payload.Say)
	}
}
