// See ../python/main.py.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"sort"
	"strings"
	"syscall"
)

const mostBytes = 8 << 20

// An expression alone would take a minute for what finding its beginnings takes a second for.
var mark = regexp.MustCompile(`^(?:cnry[0-9a-f]{16}|127\.\d+\.\d+\.\d+)`)
var starts = [][]byte{[]byte("cnry"), []byte("127.")}
var found = map[string]bool{}
var files int

func lookAt(place string, data []byte) {
	for _, start := range starts {
		for at := bytes.Index(data, start); at >= 0; {
			if hit := mark.Find(data[at:min(at+20, len(data))]); hit != nil && string(hit) != "127.0.0.1" {
				found[place+"\t"+string(hit)] = true
			}
			next := bytes.Index(data[at+1:], start)
			if next < 0 {
				break
			}
			at += 1 + next
		}
	}
}

func memory() {
	maps, _ := os.ReadFile("/proc/self/maps")
	file, err := os.Open("/proc/self/mem")
	if err != nil {
		return
	}
	defer file.Close()
	chunk := make([]byte, 4<<20)
	for _, line := range strings.Split(strings.TrimSpace(string(maps)), "\n") {
		var start, end int64
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &start, &end, &mode); n != 3 || mode[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		for at := start; at < end; at += int64(len(chunk) - 64) {
			length := min(end-at, int64(len(chunk)))
			got, err := file.ReadAt(chunk[:length], at)
			lookAt("memory", chunk[:got])
			if err != nil {
				break
			}
		}
	}
}

func readFile(path string) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer file.Close()
	files++
	data, _ := io.ReadAll(io.LimitReader(file, mostBytes))
	lookAt(path, data)
}

func folder(path string) {
	entries, err := os.ReadDir(path + "/")
	if err != nil {
		return
	}
	for _, entry := range entries {
		inner := path + "/" + entry.Name()
		lookAt(path, []byte(entry.Name()))
		info, err := os.Lstat(inner)
		if err != nil {
			continue
		}
		switch {
		case info.Mode()&os.ModeSymlink != 0:
			target, _ := os.Readlink(inner)
			lookAt(inner, []byte(target))
		case info.IsDir() && inner != "/usr" && inner != "/sys" && entry.Name() != "task":
			folder(inner)
		case info.Mode().IsRegular() && entry.Name() != "pagemap" && entry.Name() != "mem":
			readFile(inner)
		}
	}
}

func main() {
	memory()
	lookAt("environment", []byte(strings.Join(os.Environ(), "\n")))
	lookAt("arguments", []byte(strings.Join(os.Args, "\n")))
	name, _ := os.Hostname()
	lookAt("uname", []byte(name))
	folder("")
	var said []string
	for line := range found {
		said = append(said, line)
	}
	sort.Strings(said)
	fmt.Printf("%s\nfiles\t%d\n", strings.Join(said, "\n"), files)
	os.WriteFile("/output/found", []byte(strings.Join(said, "\n")), 0o644)
}
