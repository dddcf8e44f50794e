// Package ai_client asks a language model from a function:
//
//	answer, err := ai_client.Generate("Hello")
//
// It speaks Ollama's API to the address in AI_ENDPOINT or OLLAMA_HOST. In the Go image it is part of the
// standard library (`import "ai_client"`). Elsewhere, copy this file into a folder ai_client of your module:
// it needs only the standard library. The clients for Python, Node.js and C++ in this folder have the same
// calls and the same error messages.
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
	defaultEndpoint = "http://127.0.0.1:11434" // Ollama's default
	defaultModel    = "llama3:8b"
	defaultTimeout  = 300 * time.Second // the first answer of a large model includes the time to load it
	errorTextMax    = 500               // bytes of the server's text in an error message
)

// Error means that the request to the model failed.
type Error struct {
	Message string // what went wrong
	Status  int    // the server's HTTP status if it refused the request (429: a limit is reached), else 0
	Cause   error  // the error that caused this one, or nil
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Cause }

// Options of a call. The zero value of each means the default.
type Options struct {
	Model   string         // default: the job's modelId (LLM_MODEL)
	Timeout time.Duration  // longest time without data from the server; default: 300 s
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

// GenerateStream completes a prompt and passes the answer to onText in pieces, as the model writes it. If
// onText returns an error, GenerateStream closes the connection and returns that error. An answer that ends
// before it is complete is an error, too.
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

// ChatStream continues a conversation, and passes the answer to onText in pieces, as GenerateStream does.
func ChatStream(messages []Message, onText func(piece string) error, options ...Options) error {
	return askInPieces("/api/chat", map[string]any{"messages": messages}, options, func(line []byte) (bool, error) {
		var part chatted
		err := parseInto(line, &part)
		text, err := textOf(part.Message.Content, "content", err)
		return part.Done, handOver(text, err, onText)
	})
}

// Embed returns the embedding vector of a text.
func Embed(text string, options ...Options) ([]float64, error) {
	vectors, err := EmbedAll([]string{text}, options...)
	if err != nil {
		return nil, err
	}
	return vectors[0], nil
}

// EmbedAll returns the embedding vectors of several texts, in the same order.
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

// --- requests

// ask sends a request and parses the whole answer.
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

// askInPieces sends a request and passes each line of the answer, one JSON object, to onLine. onLine returns
// whether it was the last line.
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

// post sends a request and calls read with the response. An error of read counts as an error of the
// connection, unless it is an *Error or a callersError.
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
		return &Error{Message: fmt.Sprintf("the model server's address '%s' is invalid: %v", endpoint, err), Cause: err}
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := transport(timeout).RoundTrip(request)
	if err != nil {
		return connectionError(endpoint, timeout, fmt.Sprintf("the model server at %s cannot be reached", endpoint), err)
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
	return connectionError(endpoint, timeout, "the model server's answer ended before it was complete", err)
}

// complete adds the options to a request's body, and returns the timeout.
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

// transport returns a transport that makes a new connection for each request, because the server may have
// closed an idle connection. It uses no proxy, because a proxy for the internet cannot reach this address.
func transport(timeout time.Duration) *http.Transport {
	dialer := net.Dialer{Timeout: timeout}
	return &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			connection, err := dialer.DialContext(ctx, network, address)
			return timedConn{connection, timeout}, err
		},
	}
}

// timedConn is a connection on which each read and write has a timeout.
type timedConn struct {
	net.Conn
	timeout time.Duration
}

func (c timedConn) Read(into []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(into)
}

func (c timedConn) Write(from []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(from)
}

// endpointInUse returns the server's URL. OLLAMA_HOST may have no scheme, as in Ollama's own programs.
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
			return "", failed("%s must start with http:// or https://, but is '%s'", name, endpoint)
		}
		return endpoint, nil
	}
	return defaultEndpoint, nil
}

// --- errors

// callersError is an error that the caller's function has returned.
type callersError struct{ error }

// handOver passes a text to the caller's function, unless err is an earlier error.
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

// connectionError returns the error of a connection: a timeout, or else the message with the cause.
func connectionError(endpoint string, timeout time.Duration, message string, err error) *Error {
	var timedOut net.Error
	if errors.As(err, &timedOut) && timedOut.Timeout() {
		message = fmt.Sprintf("the model server at %s did not answer within %g s", endpoint, timeout.Seconds())
		return &Error{Message: message, Cause: err}
	}
	return &Error{Message: fmt.Sprintf("%s: %v", message, err), Cause: err}
}

// refusal returns an error with the server's reason: Ollama's `error` field, OpenAI's `error.message`, else
// the text, else the status line.
func refusal(endpoint string, response *http.Response) *Error {
	raw, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16)) // the bytes that have arrived are enough
	reason := strings.TrimSpace(string(raw))
	var answer struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(raw, &answer) == nil && len(answer.Error) > 0 && string(answer.Error) != "null" {
		reason = textOfError(answer.Error)
	}
	if reason == "" {
		reason = http.StatusText(response.StatusCode)
	}
	message := fmt.Sprintf("the model server at %s answered %d: %s", endpoint, response.StatusCode, shortened(reason))
	return &Error{Message: message, Status: response.StatusCode}
}

// textOfError returns the text of an `error` field: a string, an object with a `message`, or any other JSON.
func textOfError(raw json.RawMessage) string {
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

// --- answers

func parseInto(raw []byte, answer any) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		expected := "JSON"
		if json.Valid(raw) {
			expected = "a JSON object"
		}
		return failed("the model server's answer is not %s: '%s'", expected, shortened(string(raw)))
	}
	// After the first byte, Ollama can report an error only in the body. The status is 200.
	if reported, exists := fields["error"]; exists {
		return failed("the model server failed: %s", textOfError(reported))
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return failed("the model server's answer has an unexpected structure: %v", err)
	}
	return nil
}

// maybeText is the text of a field; nil if the field is missing or not a string.
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
