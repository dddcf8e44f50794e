// Package ai_client asks a language model from a function:
//
//	answer, err := ai_client.Generate("Hello")
//
// It speaks Ollama's API to the address in AI_ENDPOINT or OLLAMA_HOST. In the Go image it is part of the standard
// library (`import "ai_client"`); elsewhere this file, which needs nothing else, may be copied into a folder
// ai_client of one's own module. The clients for Python, Node.js and C++ beside this one have the same calls and
// say the same of what goes wrong.
package ai_client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	defaultEndpoint = "http://127.0.0.1:11434" // where Ollama listens unless told otherwise
	defaultModel    = "llama3:8b"
	defaultTimeout  = 300 * time.Second // a large model's first answer includes loading it
	errorTextMax    = 500               // bytes of a server's words in a message
)

// Error says that the model could not be asked, or did not answer as it should.
type Error struct {
	Message string // what went wrong, for a person
	Status  int    // the server's HTTP status where it refused (429: a limit is reached), else 0
	Cause   error  // what lies beneath, or nil
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Cause }

// Options of a call. The zero value of each means the default.
type Options struct {
	Model   string         // default: the job's modelId (LLM_MODEL)
	Timeout time.Duration  // longest silence of the server; default: 300 s
	System  string         // the system prompt, for Generate
	Options map[string]any // of the model: temperature, num_predict, …
	Fields  map[string]any // further fields of the request: format, keep_alive, think, tools, …
}

// Message is a part of a conversation.
type Message struct {
	Role    string `json:"role"` // system, user, assistant
	Content string `json:"content"`
}

// Generate completes a prompt and returns the model's whole answer. Its error is an *Error.
func Generate(prompt string, options ...Options) (string, error) {
	var answer generated
	err := ask("/api/generate", map[string]any{"prompt": prompt}, options, &answer)
	return textOf(answer.Response, "response", err)
}

// GenerateStream completes a prompt and hands over the answer piece by piece, as the model writes. An error that
// onText returns hangs up and is returned as it is. An answer that breaks off before its end is an error as well.
func GenerateStream(prompt string, onText func(piece string) error, options ...Options) error {
	return askInPieces("/api/generate", map[string]any{"prompt": prompt}, options, func(line []byte) (bool, error) {
		var part generated
		err := parseInto(line, &part)
		text, err := textOf(part.Response, "response", err)
		return part.Done, handOver(text, err, onText)
	})
}

// Chat continues a conversation, oldest message first, and returns the content of the model's answer.
func Chat(messages []Message, options ...Options) (string, error) {
	var answer chatted
	err := ask("/api/chat", map[string]any{"messages": messages}, options, &answer)
	return textOf(answer.Message.Content, "content", err)
}

// ChatStream continues a conversation, piece by piece, as GenerateStream does.
func ChatStream(messages []Message, onText func(piece string) error, options ...Options) error {
	return askInPieces("/api/chat", map[string]any{"messages": messages}, options, func(line []byte) (bool, error) {
		var part chatted
		err := parseInto(line, &part)
		text, err := textOf(part.Message.Content, "content", err)
		return part.Done, handOver(text, err, onText)
	})
}

// Embed turns a text into a vector.
func Embed(text string, options ...Options) ([]float64, error) {
	vectors, err := EmbedAll([]string{text}, options...)
	if err != nil {
		return nil, err
	}
	return vectors[0], nil
}

// EmbedAll turns several texts into vectors, in the same order.
func EmbedAll(texts []string, options ...Options) ([][]float64, error) {
	var answer struct {
		Embeddings [][]float64 `json:"embeddings"`
	}
	if err := ask("/api/embed", map[string]any{"input": texts}, options, &answer); err != nil {
		return nil, err
	}
	if len(answer.Embeddings) != len(texts) {
		return nil, failed("the model server's answer has no 'embeddings' for %d texts", len(texts))
	}
	return answer.Embeddings, nil
}

type generated struct {
	Response maybeText `json:"response"`
	Done     bool      `json:"done"`
}

type chatted struct {
	Message struct {
		Content maybeText `json:"content"`
	} `json:"message"`
	Done bool `json:"done"`
}

// --- asking

// ask makes one request with the whole answer in one piece.
func ask(path string, body map[string]any, options []Options, answer any) error {
	body["stream"] = false
	return post(path, body, options, func(response *bufio.Reader) error {
		raw, err := io.ReadAll(response)
		if err != nil {
			return err
		}
		return parseInto(raw, answer)
	})
}

// askInPieces makes one request with the answer in many pieces, a line of JSON each; onLine says which is the last.
func askInPieces(path string, body map[string]any, options []Options, onLine func([]byte) (bool, error)) error {
	body["stream"] = true
	return post(path, body, options, func(response *bufio.Reader) error {
		done := false
		for {
			line, err := response.ReadBytes('\n')
			if len(bytes.TrimSpace(line)) > 0 && (err == nil || err == io.EOF) {
				last, failure := onLine(line)
				if failure != nil {
					return failure
				}
				done = last
			}
			if err == io.EOF && done {
				return nil
			}
			if err == io.EOF {
				return io.ErrUnexpectedEOF
			}
			if err != nil {
				return err
			}
		}
	})
}

// post sends a request and has the response read. What read fails with is a failure of the connection, unless it
// is an *Error or the caller's own.
func post(path string, body map[string]any, options []Options, read func(*bufio.Reader) error) error {
	endpoint, err := endpointInUse()
	if err != nil {
		return err
	}
	timeout := complete(body, options)
	raw, err := json.Marshal(body)
	if err != nil {
		return &Error{Message: "the request cannot be written as JSON: " + err.Error(), Cause: err}
	}
	request, err := http.NewRequest(http.MethodPost, endpoint+path, bytes.NewReader(raw))
	if err != nil {
		return &Error{Message: fmt.Sprintf("the model server's address '%s' is none: %v", endpoint, err), Cause: err}
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := transport(timeout).RoundTrip(request)
	if err != nil {
		return trouble(endpoint, timeout, fmt.Sprintf("the model server at %s cannot be reached", endpoint), err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return refusal(endpoint, response)
	}
	err = read(bufio.NewReader(response.Body))
	var own *Error
	var theirs callersError
	switch {
	case err == nil || errors.As(err, &own):
		return err
	case errors.As(err, &theirs):
		return theirs.error
	}
	return trouble(endpoint, timeout, "the model server's answer broke off before its end", err)
}

// complete adds to a request's body what the options say, and returns the timeout.
func complete(body map[string]any, options []Options) time.Duration {
	body["model"] = defaultModel
	if model := os.Getenv("LLM_MODEL"); model != "" {
		body["model"] = model
	}
	timeout := defaultTimeout
	for _, given := range options {
		if given.Model != "" {
			body["model"] = given.Model
		}
		if given.Timeout > 0 {
			timeout = given.Timeout
		}
		if given.System != "" {
			body["system"] = given.System
		}
		if len(given.Options) > 0 {
			body["options"] = given.Options
		}
		maps.Copy(body, given.Fields)
	}
	return timeout
}

// transport makes connections for one request each, which cannot have been closed at the other end meanwhile. No
// proxy is asked: one that is meant for the world outside would not find this address.
func transport(timeout time.Duration) *http.Transport {
	dialer := net.Dialer{Timeout: timeout}
	return &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			connection, err := dialer.DialContext(ctx, network, address)
			return patient{connection, timeout}, err
		},
	}
}

// patient is a connection that may be silent for so long.
type patient struct {
	net.Conn
	timeout time.Duration
}

func (p patient) Read(into []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(p.timeout)); err != nil {
		return 0, err
	}
	return p.Conn.Read(into)
}

func (p patient) Write(from []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(p.timeout)); err != nil {
		return 0, err
	}
	return p.Conn.Write(from)
}

// endpointInUse says where the server is; OLLAMA_HOST may come without a scheme, as Ollama's own programs take it.
func endpointInUse() (string, error) {
	for _, name := range []string{"AI_ENDPOINT", "OLLAMA_HOST"} {
		endpoint := strings.TrimRight(os.Getenv(name), "/")
		if endpoint == "" {
			continue
		}
		if name == "OLLAMA_HOST" && !strings.Contains(endpoint, "://") {
			endpoint = "http://" + endpoint
		}
		if !strings.HasPrefix(endpoint, "http://") && !strings.HasPrefix(endpoint, "https://") {
			return "", failed("%s should start with http:// or https://, but is '%s'", name, endpoint)
		}
		return endpoint, nil
	}
	return defaultEndpoint, nil
}

// --- errors

// callersError is what a function of the caller's returned.
type callersError struct{ error }

func handOver(text string, err error, onText func(string) error) error {
	if err != nil {
		return err
	}
	if err := onText(text); err != nil {
		return callersError{err}
	}
	return nil
}

func failed(format string, arguments ...any) *Error {
	return &Error{Message: fmt.Sprintf(format, arguments...)}
}

// trouble is an error of a connection.
func trouble(endpoint string, timeout time.Duration, what string, err error) *Error {
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		what = fmt.Sprintf("the model server at %s did not answer within %g s", endpoint, timeout.Seconds())
		return &Error{Message: what, Cause: err}
	}
	return &Error{Message: fmt.Sprintf("%s: %v", what, err), Cause: err}
}

// refusal tells what the server said: Ollama's `error` field, OpenAI's `error.message`, else its text, else the
// status line.
func refusal(endpoint string, response *http.Response) *Error {
	raw, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16)) // what has come will do
	words := strings.TrimSpace(string(raw))
	var answer struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(raw, &answer) == nil && len(answer.Error) > 0 {
		words = said(answer.Error)
	}
	if words == "" {
		words = http.StatusText(response.StatusCode)
	}
	message := fmt.Sprintf("the model server at %s answered %d: %s", endpoint, response.StatusCode, shortened(words))
	return &Error{Message: message, Status: response.StatusCode}
}

func said(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var object struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(raw, &object) == nil && object.Message != "" {
		return object.Message
	}
	return string(raw)
}

// --- reading answers

func parseInto(raw []byte, answer any) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		what := "JSON"
		if json.Valid(raw) {
			what = "JSON object"
		}
		return failed("the model server answered no %s: '%s'", what, shortened(string(raw)))
	}
	// Ollama reports what fails after its first byte this way, under status 200.
	if reported, there := fields["error"]; there {
		return failed("the model server failed: %s", said(reported))
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return failed("the model server's answer has another shape: %v", err)
	}
	return nil
}

// maybeText is a field's text, or nil where there is none.
type maybeText struct{ text *string }

func (m *maybeText) UnmarshalJSON(raw []byte) error {
	var text *string
	if json.Unmarshal(raw, &text) == nil {
		m.text = text
	}
	return nil
}

func textOf(found maybeText, field string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	if found.text == nil {
		return "", failed("the model server's answer has no text in '%s'", field)
	}
	return *found.text, nil
}

func shortened(text string) string {
	if len(text) <= errorTextMax {
		return text
	}
	end := errorTextMax
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
