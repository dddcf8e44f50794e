// The self-test program; ../python/main.py describes its input and output.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func number(word string) int {
	value, err := strconv.Atoi(word)
	if err != nil {
		panic(err)
	}
	return value
}

func call(words []string) (string, error) {
	var numbers [7]uintptr
	for i, word := range words {
		numbers[i] = uintptr(number(word))
	}
	_, _, err := syscall.RawSyscall6(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6])
	if err != 0 {
		return "", err
	}
	return "", nil
}

func write(words []string) (string, error) {
	file, err := os.OpenFile(words[0], os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		err = file.Close()
	}
	return "", err
}

func read(words []string) (string, error) {
	text, err := os.ReadFile(words[0])
	return string(text), err
}

func names(words []string) (string, error) {
	entries, err := os.ReadDir(words[0])
	var found []string
	for _, entry := range entries {
		found = append(found, entry.Name())
	}
	return strings.Join(found, "\n"), err
}

func space(words []string) (string, error) {
	var found syscall.Statfs_t
	err := syscall.Statfs(words[0], &found)
	return fmt.Sprint(uint64(found.Bsize)*found.Blocks, found.Files), err
}

func connect(words []string) (string, error) {
	socket, err := net.DialTimeout("tcp", net.JoinHostPort(words[0], words[1]), time.Second)
	if err != nil {
		var netError net.Error
		if errors.As(err, &netError) && netError.Timeout() {
			return "", syscall.ETIMEDOUT
		}
		return "", err
	}
	return "", socket.Close()
}

func environment([]string) (string, error) {
	var found []string
	for _, variable := range os.Environ() {
		found = append(found, strings.SplitN(variable, "=", 2)[0])
	}
	return strings.Join(found, "\n"), nil
}

func daemon([]string) (string, error) {
	command := exec.Command("/usr/bin/sleep", "1000")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return "", command.Start()
}

func end(words []string) (string, error) {
	switch words[0] {
	case "fork":
		for {
			if exec.Command("/usr/bin/sleep", "1000").Start() != nil {
				os.Exit(1)
			}
		}
	case "memory":
		var held [][]byte
		for {
			block := make([]byte, 1<<20)
			for i := range block {
				block[i] = 'x'
			}
			held = append(held, block)
		}
	case "file":
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			return "", err
		}
		file, err := os.Create("/tmp/large")
		if err != nil {
			return "", err
		}
		if _, err = file.WriteAt([]byte("x"), int64(limit.Cur)-1); err != nil {
			return "", err
		}
		_, err = file.WriteAt([]byte("x"), int64(limit.Cur))
		return "", err
	case "time":
		signal.Ignore(syscall.SIGTERM)
		time.Sleep(1000 * time.Second)
	}
	return "", nil
}

var operations = map[string]func([]string) (string, error){
	"call":    call,
	"write":   write,
	"read":    read,
	"names":   names,
	"space":   space,
	"connect": connect,
	"signal": func(words []string) (string, error) {
		return "", syscall.Kill(number(words[0]), syscall.Signal(number(words[1])))
	},
	"link":        func(words []string) (string, error) { return "", os.Symlink(words[0], words[1]) },
	"environment": environment,
	"daemon":      daemon,
	"end":         end,
}

func answer(line string) string {
	words := strings.Fields(line)
	text, err := operations[words[0]](words[1:])
	if err != nil {
		var number syscall.Errno
		if !errors.As(err, &number) || words[0] == "end" {
			panic(err)
		}
		return fmt.Sprint("error ", int(number))
	}
	if text == "" {
		return "done"
	}
	return "done " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\x1e")
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if lines.Text() != "" {
			fmt.Println(answer(lines.Text()))
		}
	}
}
