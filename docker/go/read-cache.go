// read-cache FOLDER: a build cache for the go command (GOCACHEPROG). It reads from FOLDER, a cache that the
// go command has made and that may be read-only, and writes new entries to $GOTMPDIR.
//
// The go command must be able to write to its cache. A copy of FOLDER, or a folder of links to its files,
// would be slower than this program. The protocol is described in `go doc cmd/go/internal/cacheprog`,
// FOLDER's format in cmd/go/internal/cache, `(*DiskCache).get`.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
		err = serve(os.Stdin, os.Stdout, store{ready: os.Args[1], kept: kept})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "read-cache:", err)
		os.Exit(1)
	}
}

// serve answers requests until the go command closes its end. The go command may send several requests before
// it reads the answers.
func serve(in io.Reader, out io.Writer, store store) error {
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

// store has two folders: the precompiled cache, and the entries of this build.
type store struct{ ready, kept string }

func (s store) answer(asked request, body *bufio.Reader) (response, error) {
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
func (s store) get(action []byte) response {
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
	return response{Miss: true}
}

// put stores an output, which follows its request as a JSON string in base64.
func (s store) put(asked request, body *bufio.Reader) (response, error) {
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
	output, entry := pathOf(s.kept, asked.OutputID, "d"), pathOf(s.kept, asked.ActionID, "a")
	text := fmt.Sprintf("v1 %x %x %d %d\n", asked.ActionID, asked.OutputID, len(content), time.Now().UnixNano())
	for _, file := range []struct {
		path    string
		content []byte
	}{{output, content}, {entry, []byte(text)}} {
		if err := os.MkdirAll(filepath.Dir(file.path), 0o700); err != nil {
			return response{}, err
		}
		if err := os.WriteFile(file.path, file.content, 0o600); err != nil {
			return response{}, err
		}
	}
	return response{DiskPath: output}, nil
}

// pathOf returns the path of an identifier's entry (kind "a") or output (kind "d") in a cache.
func pathOf(folder string, id []byte, kind string) string {
	name := hex.EncodeToString(id)
	return filepath.Join(folder, name[:2], name+"-"+kind)
}
