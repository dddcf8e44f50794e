// Greets a person. The input is JSON on standard input.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
)

func main() {
	var input struct {
		Name string `json:"name"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		log.Fatal(err)
	}
	greeting := fmt.Sprintf("Hello %s!\n", input.Name)
	fmt.Print(greeting)

	// Files in OUTPUT_DIR are the output files of the run.
	path := filepath.Join(os.Getenv("OUTPUT_DIR"), "greeting.txt")
	if err := os.WriteFile(path, []byte(greeting), 0o644); err != nil {
		log.Fatal(err)
	}
}
