// See ../python/main.py.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	random "math/rand"
	randomv2 "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const code = "/work/main.go"

var places = []string{"/tmp", "/output", "/work", "/input", "/dev/shm"}
var held []*os.File // what the daemon is to inherit

func failed(number syscall.Errno) error {
	if number == 0 {
		return nil
	}
	return number
}

func call(number uintptr, a, b, c uintptr) error {
	_, _, failure := syscall.Syscall(number, a, b, c)
	return failed(failure)
}

func hold(file *os.File, err error) error {
	if err == nil {
		held = append(held, file)
	}
	return err
}

func write(path, text string, flags int) error {
	file, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(text)
	return err
}

// --- leave

func leaveFiles() error {
	for _, place := range places {
		if err := write(place+"/left", "left", os.O_CREATE); err != nil {
			return err
		}
	}
	return nil
}

func leaveCode() error {
	return errors.Join(
		write(code, "changed", os.O_APPEND),
		os.Rename(code, code+".old"),
		write(code, "replaced", os.O_CREATE),
	)
}

func leaveAbstractSocket() error {
	listener, err := net.Listen("unix", "@left")
	if err != nil {
		return err
	}
	return hold(listener.(*net.UnixListener).File())
}

func leaveListener() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:7777")
	if err != nil {
		return err
	}
	return hold(listener.(*net.TCPListener).File())
}

func leaveTimeWait() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	near, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		return err
	}
	far, err := listener.Accept()
	near.Close()
	far.Read(make([]byte, 1))
	far.Close()
	return err
}

func leaveAffinity() error {
	var set [16]uint64
	if err := call(syscall.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set))); err != nil {
		return err
	}
	set[0] &= -set[0] // the first alone
	return call(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set)))
}

func leaveLock() error {
	file, err := os.Open(code)
	if err != nil {
		return err
	}
	held = append(held, file)
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
}

func leaveDeletedFile() error {
	file, err := os.Create("/tmp/deleted")
	if err != nil {
		return err
	}
	held = append(held, file)
	_, err = file.Write(make([]byte, 1<<20))
	return errors.Join(err, os.Remove("/tmp/deleted"))
}

func leaveDaemon() error {
	daemon := exec.Command("sleep", "1000")
	daemon.Stdout, daemon.Stderr = os.Stdout, os.Stderr
	daemon.ExtraFiles = held
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return daemon.Start()
}

var traces = map[string]func() error{
	"files":           leaveFiles,
	"code":            leaveCode,
	"program":         func() error { return write("/slot/program", "", os.O_APPEND) },
	"shared memory":   func() error { return call(syscall.SYS_SHMGET, 1234, 4096, 0o1666) },
	"semaphores":      func() error { return call(syscall.SYS_SEMGET, 1234, 1, 0o1666) },
	"message queue":   func() error { return call(syscall.SYS_MSGGET, 1234, 0o1666, 0) },
	"POSIX queue":     func() error { return hold(os.OpenFile("/dev/mqueue/left", os.O_RDWR|os.O_CREATE, 0o600)) },
	"abstract socket": leaveAbstractSocket,
	"listener":        leaveListener,
	"time wait":       leaveTimeWait,
	"environment":     func() error { return os.Setenv("LEFT", "left") },
	"working folder":  func() error { return os.Chdir("/tmp") },
	"umask":           func() error { syscall.Umask(0); return nil },
	"limits": func() error {
		return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 128, Max: 128})
	},
	"signals":      func() error { signal.Ignore(syscall.SIGTERM); return nil },
	"niceness":     func() error { return syscall.Setpriority(syscall.PRIO_PROCESS, 0, 5) },
	"affinity":     leaveAffinity,
	"oom score":    func() error { return write("/proc/self/oom_score_adj", "0", 0) },
	"hostname":     func() error { return syscall.Sethostname([]byte("left")) },
	"sysctl":       func() error { return write("/proc/sys/net/ipv4/ip_local_port_range", "1 2", 0) },
	"lock":         leaveLock,
	"deleted file": leaveDeletedFile,
	"attribute":    func() error { return syscall.Setxattr(code, "user.left", []byte("left"), 0) },
	"terminal": func() error { return hold(os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)) },
	"timer":    func() error { time.AfterFunc(1000*time.Second, func() {}); return nil },
	"daemon":   leaveDaemon,
}

// The kernel's names of those that come up here.
var errorNames = map[syscall.Errno]string{
	syscall.EPERM: "EPERM", syscall.EACCES: "EACCES", syscall.EROFS: "EROFS", syscall.ENOENT: "ENOENT",
	syscall.ENOSYS: "ENOSYS", syscall.EMFILE: "EMFILE", syscall.ETXTBSY: "ETXTBSY", syscall.EADDRINUSE: "EADDRINUSE",
}

func said(err error) string {
	var number syscall.Errno
	if errors.As(err, &number) && errorNames[number] != "" {
		return errorNames[number]
	}
	return err.Error()
}

func leave(trace string) string {
	if err := traces[trace](); err != nil {
		return said(err)
	}
	return "done"
}

// --- look

func joined(lines []string) string {
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func read(path string) (string, error) {
	text, err := os.ReadFile(path)
	return string(text), err
}

func listing(folder string) (string, error) {
	var found []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var info syscall.Stat_t
		if err := syscall.Lstat(path, &info); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o", path, info.Mode)
		if !entry.IsDir() {
			line += fmt.Sprintf(" %d", info.Size)
		}
		found = append(found, line)
		return nil
	})
	return joined(found), err
}

func names(folder string) (string, error) {
	var found []string
	entries, err := os.ReadDir(folder)
	for _, entry := range entries {
		found = append(found, entry.Name())
	}
	return joined(found), err
}

func links(folder string) (string, error) {
	var found []string
	entries, err := os.ReadDir(folder)
	for _, entry := range entries {
		if target, err := os.Readlink(folder + "/" + entry.Name()); err == nil {
			found = append(found, entry.Name()+" "+target)
		}
	}
	return joined(found), err
}

func digest(path string) (string, error) {
	text, err := os.ReadFile(path)
	return fmt.Sprintf("%x", sha256.Sum256(text)), err
}

func space(path string) (string, error) {
	var room syscall.Statfs_t
	err := syscall.Statfs(path, &room)
	return fmt.Sprint(room.Bfree, room.Ffree), err
}

func attributes(path string) (string, error) {
	list := make([]byte, 1024)
	size, err := syscall.Listxattr(path, list)
	return string(list[:max(size, 0)]), err
}

func draw(string) (string, error) {
	drawn := make([]byte, 8)
	_, err := rand.Read(drawn)
	return fmt.Sprintf("math/rand: %d\nmath/rand/v2: %d\ncrypto/rand: %x", random.Int63(), randomv2.Int64(), drawn), err
}

var looks = map[string]func(string) (string, error){
	"read":        read,
	"list":        listing,
	"names":       names,
	"links":       links,
	"link":        os.Readlink,
	"digest":      digest,
	"space":       space,
	"attributes":  attributes,
	"variables":   func(string) (string, error) { return joined(os.Environ()), nil },
	"random":      draw,
}

func look(item string) string {
	verb, path, _ := strings.Cut(item, " ")
	seen, err := looks[verb](path)
	if err != nil {
		return said(err)
	}
	return seen
}

// --- try

const mostTime = 10 * time.Second

// What a word stands for; a buffer is kept for as long as the call needs it.
func argument(word string, results map[int]uintptr) (uintptr, []byte) {
	rest := word[1:]
	var buffer []byte
	switch word[0] {
	case '@':
		buffer = []byte(rest + "\x00")
	case '#':
		buffer, _ = hex.DecodeString(rest)
	case '*':
		size, _ := strconv.Atoi(rest)
		buffer = make([]byte, size)
	case '$':
		step, _ := strconv.Atoi(rest)
		return results[step], nil
	default:
		if word == "self" {
			return uintptr(os.Getpid()), nil
		}
		if number, err := strconv.ParseInt(word, 0, 64); err == nil {
			return uintptr(number), nil
		}
		number, err := strconv.ParseUint(word, 0, 64)
		if err != nil {
			panic(err)
		}
		return uintptr(number), nil
	}
	return uintptr(unsafe.Pointer(&buffer[0])), buffer
}

func systemCall(words []string, results map[int]uintptr) (uintptr, error) {
	var a [7]uintptr
	var buffers [7][]byte
	for i, word := range words {
		a[i], buffers[i] = argument(word, results)
	}
	result, _, failure := syscall.RawSyscall6(a[0], a[1], a[2], a[3], a[4], a[5], a[6])
	runtime.KeepAlive(buffers)
	return result, failed(failure)
}

func readSome(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	if _, err = file.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
		return syscall.ENODATA
	}
	return err
}

func step(words []string) error {
	var err error
	switch path := words[1]; words[0] {
	case "read":
		err = readSome(path)
	case "write":
		err = write(path, "0", 0)
	case "create":
		err = write(path, "", os.O_CREATE)
	case "list":
		_, err = os.ReadDir(path)
	case "link":
		_, err = os.Readlink(path)
	case "connect":
		_, err = net.Dial("tcp", net.JoinHostPort(path, words[2]))
	case "unix":
		_, err = net.Dial("unix", path)
	case "resolve":
		if _, err = net.LookupHost(path); err != nil {
			err = syscall.ENOENT
		}
	default:
		os.Exit(255)
	}
	return err
}

func goThrough(steps []string) error {
	results := map[int]uintptr{}
	again := len(steps)
	for at := 0; at < len(steps); {
		words := strings.Fields(steps[at])
		at++
		var err error
		switch words[0] {
		case "loop":
			again = at
		case "call":
			results[at], err = systemCall(words[1:], results)
		default:
			err = step(words)
		}
		if err != nil {
			return err
		}
		if at == len(steps) {
			at = again
		}
	}
	return nil
}

// There is no fork in Go: each attack is this program again, and its exit code says what became of it.
func attempt(attack string) string {
	request, _ := json.Marshal(map[string][]string{"chain": {attack}})
	child := exec.Command("/proc/self/exe")
	child.Stdin = bytes.NewReader(request)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Run(); child.ProcessState == nil {
		return err.Error()
	}
	status := child.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return fmt.Sprint(-int(status.Signal()))
	}
	return fmt.Sprint(status.ExitStatus())
}

func endAsChain(attack string) {
	time.AfterFunc(mostTime, func() { os.Exit(int(syscall.ETIMEDOUT)) })
	err := goThrough(strings.Split(attack, " ; "))
	var number syscall.Errno
	if errors.As(err, &number) {
		os.Exit(int(number))
	}
	if err != nil {
		panic(err)
	}
	os.Exit(0)
}

// --- do

func sleeper() *exec.Cmd {
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		os.Exit(1)
	}
	return child
}

func forkBomb() {
	for {
		sleeper()
	}
}

func threadBomb() {
	for {
		go func() {
			runtime.LockOSThread()
			syscall.Nanosleep(&syscall.Timespec{Sec: 1000}, nil)
		}()
		time.Sleep(time.Millisecond)
	}
}

// There is no fork in Go: the child is this program again.
func memoryBombInAChild() {
	child := exec.Command("/proc/self/exe")
	child.Stdin = strings.NewReader(`{"do": ["memory bomb"]}`)
	child.Run()
}

func memoryBomb() {
	var all [][]byte
	for {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		all = append(all, block)
	}
}

func closeStreams() {
	os.Stdout.Close()
	os.Stderr.Close()
	time.Sleep(100 * time.Millisecond)
	os.Exit(0)
}

func fillTheDisk() {
	file, _ := os.Create("/tmp/full")
	for {
		if _, err := file.Write(make([]byte, 1<<20)); err != nil {
			os.Exit(1)
		}
	}
}

func stopEveryone() {
	sleeper()
	syscall.Kill(-1, syscall.SIGSTOP)
	syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	select {}
}

func killEveryone() {
	child := sleeper()
	syscall.Kill(-1, syscall.SIGKILL)
	child.Wait()
	if child.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		os.Exit(9)
	}
}

func writeForEver() {
	loop := "i=0; while :; do i=$(( (i + 1) % 50 )); echo $i >/output/$i; done"
	child := exec.Command("sh", "-c", loop)
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	child.Start()
	time.Sleep(50 * time.Millisecond)
}

func zombies() {
	for exec.Command("true").Start() == nil {
	}
}

func overflowTheStack(frame [4096]byte) byte {
	frame[0]++
	return overflowTheStack(frame) + frame[0]
}

func ignoreSigterm() {
	signal.Ignore(syscall.SIGTERM)
	for {
		time.Sleep(time.Hour)
	}
}

var endings = map[string]func(){
	"kill everyone":          killEveryone,
	"daemon":                 func() { leaveDaemon() },
	"fork bomb":              forkBomb,
	"thread bomb":            threadBomb,
	"memory bomb in a child": memoryBombInAChild,
	"memory bomb":            memoryBomb,
	"close streams":          closeStreams,
	"fill the disk":          fillTheDisk,
	"stop everyone":          stopEveryone,
	"write for ever":         writeForEver,
	"ignore SIGTERM":         ignoreSigterm,
	"zombies":                zombies,
	"overflow the stack":     func() { overflowTheStack([4096]byte{}) },
}

// What the kernel shows of a process is its first thread's: what is left has to be left there.
func init() {
	runtime.LockOSThread()
}

func main() {
	var request map[string][]string
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		panic(err)
	}
	results := map[string]string{}
	for _, word := range request["leave"] {
		results[word] = leave(word)
	}
	for _, item := range request["look"] {
		results[item] = look(item)
	}
	for _, attack := range request["try"] {
		results[attack] = attempt(attack)
	}
	for _, attack := range request["chain"] {
		endAsChain(attack)
	}
	for _, ending := range request["do"] {
		endings[ending]()
		fmt.Println("alive")
		return
	}
	json.NewEncoder(os.Stdout).Encode(results)
}
