// read-cache FOLDER [EARLIER OUTPUT BYTES]: a build cache for the go command (GOCACHEPROG). It reads from
// FOLDER, a cache that the go command has made and that may be read-only, and writes new entries to $GOTMPDIR.
//
// EARLIER, if it exists, has entries of an earlier build of the same function. At the end, the entries that this
// build has used or made, and that are not in FOLDER, are written to OUTPUT for the next build, at most BYTES.
// The go command computes the key of an entry from all that it depends on, so an entry is never out of date.
//
// The go command must be able to write to its cache. A copy of FOLDER, or a folder of links to its files,
// would be slower than this program. The protocol is described in `go doc cmd/go/internal/cacheprog`,
// FOLDER's format in cmd/go/internal/cache, `(*DiskCache).get`.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

type request struct {
	ID       int64
	Command  string
	ActionID []byte
	OutputID []byte
	BodySize int64
}

type response struct {
	ID            int64
	Err           string     `json:",omitempty"`
	KnownCommands []string   `json:",omitempty"`
	Miss          bool       `json:",omitempty"`
	OutputID      []byte     `json:",omitempty"`
	Size          int64      `json:",omitempty"`
	Time          *time.Time `json:",omitempty"`
	DiskPath      string     `json:",omitempty"`
}

func main() {
	kept, err := os.MkdirTemp(os.Getenv("GOTMPDIR"), "cache-")
	if err == nil {
		defer os.RemoveAll(kept)
		err = run(os.Args[1:], kept)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "read-cache:", err)
		os.Exit(1)
	}
}

func run(arguments []string, kept string) error {
	store := &store{ready: arguments[0], kept: kept, earlier: map[string]entry{}}
	if len(arguments) == 4 {
		most, err := strconv.ParseInt(arguments[3], 10, 64)
		if err != nil {
			return err
		}
		store.output, store.most = arguments[2], most
		// Without the earlier entries, the go command makes them again.
		if file, err := os.Open(arguments[1]); err == nil {
			defer file.Close()
			store.file, store.earlier = file, entriesOf(file)
		}
	}
	return serve(os.Stdin, os.Stdout, store)
}

// serve answers requests until the go command closes its end. The go command may send several requests before
// it reads the answers.
func serve(in io.Reader, out io.Writer, store *store) error {
	reader := bufio.NewReaderSize(in, 1<<16)
	writer := bufio.NewWriter(out)
	answers := json.NewEncoder(writer)
	if err := answers.Encode(response{KnownCommands: []string{"get", "put", "close"}}); err != nil {
		return err
	}
	for {
		if err := writer.Flush(); err != nil {
			return err
		}
		line, err := nextLine(reader)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var asked request
		if err := json.Unmarshal(line, &asked); err != nil {
			return err
		}
		answer, err := store.answer(asked, reader)
		if err != nil {
			answer = response{Err: err.Error()}
		}
		answer.ID = asked.ID
		if err := answers.Encode(answer); err != nil {
			return err
		}
		if asked.Command == "close" {
			store.export()
			return writer.Flush()
		}
	}
}

// nextLine returns the next line that is not empty: the go command sends empty lines between requests.
func nextLine(reader *bufio.Reader) ([]byte, error) {
	for {
		line, err := reader.ReadBytes('\n')
		if len(line) > 1 || err != nil {
			return line, err
		}
	}
}

// An entry of the file EARLIER or OUTPUT: this header in little-endian order, followed by the content.
type header struct {
	Action, Output [32]byte
	Nanoseconds    int64
	Size           int64
}

type entry struct {
	header
	offset int64 // of the content in EARLIER; -1 for an entry of this build
}

// magic begins the files EARLIER and OUTPUT.
const magic = "go objects 1\n"

// spareBytes stay free on the disk, so that the run does not count as one that filled it.
const spareBytes = 1 << 20

// store has two folders, the precompiled cache and the entries of this build, and the entries of an earlier
// build by their action.
type store struct {
	ready, kept string
	file        *os.File
	earlier     map[string]entry
	used        []entry // to be written to output
	isNew       bool    // whether used has an entry of this build
	output      string
	most        int64
}

// entriesOf returns the entries of a file up to the first damaged one.
func entriesOf(file *os.File) map[string]entry {
	found := map[string]entry{}
	info, err := file.Stat()
	if err != nil {
		return found
	}
	start := make([]byte, len(magic))
	if _, err := io.ReadFull(file, start); err != nil || string(start) != magic {
		return found
	}
	offset := int64(len(magic))
	for {
		var next entry
		if binary.Read(io.NewSectionReader(file, offset, info.Size()-offset), binary.LittleEndian, &next.header) != nil {
			return found
		}
		next.offset = offset + int64(binary.Size(next.header))
		if next.Size < 0 || next.Size > info.Size()-next.offset {
			return found
		}
		offset = next.offset + next.Size
		found[string(next.Action[:])] = next
	}
}

func (s *store) answer(asked request, body *bufio.Reader) (response, error) {
	switch asked.Command {
	case "get":
		return s.get(asked.ActionID), nil
	case "put":
		return s.put(asked, body)
	case "close":
		return response{}, nil
	}
	return response{}, fmt.Errorf("unknown command %q", asked.Command)
}

// get returns an action's output. The file of an entry is "v1 ACTION OUTPUT SIZE NANOSECONDS", with both
// identifiers in hexadecimal.
func (s *store) get(action []byte) response {
	for _, folder := range []string{s.kept, s.ready} {
		entry, err := os.ReadFile(pathOf(folder, action, "a"))
		if err != nil {
			continue
		}
		var name, output []byte
		var size, nanoseconds int64
		if _, err := fmt.Sscanf(string(entry), "v1 %x %x %d %d", &name, &output, &size, &nanoseconds); err != nil {
			continue
		}
		made := time.Unix(0, nanoseconds)
		return response{OutputID: output, Size: size, Time: &made, DiskPath: pathOf(folder, output, "d")}
	}
	return s.getEarlier(action)
}

// getEarlier returns an action's output from the earlier build, as a file of this build.
func (s *store) getEarlier(action []byte) response {
	found, ok := s.earlier[string(action)]
	if !ok {
		return response{Miss: true}
	}
	path := pathOf(s.kept, found.Output[:], "d")
	content := make([]byte, found.Size)
	if _, err := s.file.ReadAt(content, found.offset); err != nil {
		return response{Miss: true}
	}
	if err := write(path, content); err != nil {
		return response{Miss: true}
	}
	delete(s.earlier, string(action))
	s.used = append(s.used, found)
	made := time.Unix(0, found.Nanoseconds)
	if err := s.keepEntry(found.header); err != nil {
		return response{Miss: true}
	}
	return response{OutputID: found.Output[:], Size: found.Size, Time: &made, DiskPath: path}
}

// put stores an output, which follows its request as a JSON string in base64.
func (s *store) put(asked request, body *bufio.Reader) (response, error) {
	var content []byte
	if asked.BodySize > 0 {
		line, err := nextLine(body)
		if err != nil {
			return response{}, err
		}
		if err := json.Unmarshal(line, &content); err != nil {
			return response{}, err
		}
	}
	if int64(len(content)) != asked.BodySize {
		return response{}, fmt.Errorf("the body has %d bytes, not %d", len(content), asked.BodySize)
	}
	made := header{Nanoseconds: time.Now().UnixNano(), Size: asked.BodySize}
	if copy(made.Action[:], asked.ActionID) != len(asked.ActionID) || copy(made.Output[:], asked.OutputID) != len(asked.OutputID) {
		return response{}, fmt.Errorf("an identifier has more than %d bytes", len(made.Action))
	}
	path := pathOf(s.kept, asked.OutputID, "d")
	if err := write(path, content); err != nil {
		return response{}, err
	}
	s.used, s.isNew = append(s.used, entry{made, -1}), true
	return response{DiskPath: path}, s.keepEntry(made)
}

// keepEntry writes the entry of an output of this build.
func (s *store) keepEntry(made header) error {
	text := fmt.Sprintf("v1 %x %x %d %d\n", made.Action, made.Output, made.Size, made.Nanoseconds)
	return write(pathOf(s.kept, made.Action[:], "a"), []byte(text))
}

// export writes the used entries to the output file. The build does not depend on it, so a failure only
// removes the file.
func (s *store) export() {
	var disk syscall.Statfs_t
	if s.output == "" || !s.isNew || syscall.Statfs(filepath.Dir(s.output), &disk) != nil {
		return
	}
	most := min(s.most, int64(disk.Bavail)*disk.Bsize-spareBytes)
	if err := s.writeUsed(most); err != nil {
		os.Remove(s.output)
	}
}

func (s *store) writeUsed(most int64) error {
	file, err := os.OpenFile(s.output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	writer := bufio.NewWriter(file)
	left := most - int64(len(magic))
	if left < 0 {
		return fmt.Errorf("no room")
	}
	writer.WriteString(magic)
	for _, used := range s.used {
		size := int64(binary.Size(used.header)) + used.Size
		if size > left {
			continue
		}
		left -= size
		content, err := os.ReadFile(pathOf(s.kept, used.Output[:], "d"))
		if err != nil {
			return err
		}
		if err := binary.Write(writer, binary.LittleEndian, used.header); err != nil {
			return err
		}
		if _, err := writer.Write(content); err != nil {
			return err
		}
	}
	return writer.Flush()
}

func write(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

// pathOf returns the path of an identifier's entry (kind "a") or output (kind "d") in a cache.
func pathOf(folder string, id []byte, kind string) string {
	name := hex.EncodeToString(id)
	return filepath.Join(folder, name[:2], name+"-"+kind)
}
