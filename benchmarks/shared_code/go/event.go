package main

import (
	"encoding/json"
	"os"
)

// read decodes the input of the function.
func read(into any) {
	text, err := os.ReadFile(os.Getenv("PAYLOAD_FILE"))
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		panic(err)
	}
}
