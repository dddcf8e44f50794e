'use strict';
// Ask a language model from a function:
//
//   const ai = require('ai_client');
//   ai.generate('Hello').then(console.log);
//
// Speaks Ollama's API to the address in AI_ENDPOINT or OLLAMA_HOST. It is in the image's /node_modules, so
// both `require` and `import` find it. An `ai_client` in the function's own node_modules has precedence. The
// clients for Python, C++ and Go in this folder have the same calls and the same error messages.
//
// The options of every call: `model` is the model's name (default: the job's `modelId`). `timeout` is the
// longest time without data from the server, in seconds (default 300). `system`, `format`, `keep_alive`,
// `think` and the other names in REQUEST_FIELDS are fields of the request. Every other name is an option of
// the model (`temperature`, `num_predict`, …).

const DEFAULT_ENDPOINT = 'http://127.0.0.1:11434'; // Ollama's default
const DEFAULT_MODEL = 'llama3:8b';
const DEFAULT_TIMEOUT_S = 300; // the first answer of a large model includes the time to load it
const ERROR_TEXT_MAX = 500; // characters of the server's text in an error message

/** The request to the model failed. */
class AIError extends Error {
  /**
   * @param {string} message What went wrong.
   * @param {{status?: number, cause?: Error}} [details] The server's HTTP status if it refused the request (429: a
   *   limit is reached), and the error that caused this one.
   */
  constructor(message, { status = null, cause } = {}) {
    super(message, cause && { cause });
    this.name = 'AIError';
    this.status = status;
  }
}

/**
 * Complete a prompt.
 * @param {string} prompt The prompt.
 * @param {object} [options] See the top of this file.
 * @returns {Promise<string>} The model's whole answer.
 * @throws {AIError} The server cannot be reached, refused the request, or sent an invalid answer.
 */
async function generate(prompt, options) {
  return textOf(await ask('/api/generate', { prompt }, options), 'response');
}

/**
 * Complete a prompt, and yield the answer in pieces as the model writes it:
 * `for await (const piece of ai.generateStream('…')) …`. A caller that stops early closes the connection. Throws as
 * `generate` does; also if the answer ends before it is complete.
 * @returns {AsyncGenerator<string>}
 */
async function* generateStream(prompt, options) {
  for await (const part of askInPieces('/api/generate', { prompt }, options)) yield textOf(part, 'response');
}

/**
 * Continue a conversation.
 * @param {string | {role: string, content: string}[]} messages Oldest first. A string is one message of the user.
 * @param {object} [options] As for `generate`; `tools` too.
 * @returns {Promise<string>} The content of the model's answer.
 * @throws {AIError} As for `generate`.
 */
async function chat(messages, options) {
  return contentOf(await ask('/api/chat', { messages: conversation(messages) }, options));
}

/**
 * Continue a conversation, and yield the answer in pieces, as `generateStream` does.
 * @returns {AsyncGenerator<string>}
 */
async function* chatStream(messages, options) {
  const body = { messages: conversation(messages) };
  for await (const part of askInPieces('/api/chat', body, options)) yield contentOf(part);
}

/**
 * Compute the embedding vectors of texts.
 * @param {string | string[]} text One text, or several.
 * @param {object} [options] As for `generate`; `truncate` and `dimensions` too.
 * @returns {Promise<number[] | number[][]>} The vector of the text; for several texts an array of their vectors.
 * @throws {AIError} As for `generate`.
 */
async function embed(text, options) {
  const texts = Array.isArray(text) ? text : [text];
  const { embeddings } = await ask('/api/embed', { input: texts }, options);
  if (!Array.isArray(embeddings) || embeddings.length !== texts.length) {
    throw new AIError(`the model server's answer has no 'embeddings' for ${texts.length} texts`);
  }
  return Array.isArray(text) ? embeddings : embeddings[0];
}

// Fields of the request itself. All other options are options of the model.
const REQUEST_FIELDS = new Set([
  'system', 'template', 'format', 'keep_alive', 'think', 'images', 'suffix', 'raw', 'tools', 'truncate', 'dimensions',
]);

function conversation(messages) {
  return typeof messages === 'string' ? [{ role: 'user', content: messages }] : messages;
}

// --- requests

// Send a request and return the JSON object of the whole answer.
async function ask(path, body, options) {
  const request = requestOf({ ...body, stream: false }, options);
  const pieces = [];
  for await (const piece of answerTo(path, request)) pieces.push(piece);
  return parse(Buffer.concat(pieces));
}

// Send a request and yield the JSON objects of the answer, one for each line.
async function* askInPieces(path, body, options) {
  const request = requestOf({ ...body, stream: true }, options);
  let done = false;
  for await (const line of lines(answerTo(path, request))) {
    const part = parse(line);
    done = part.done === true;
    yield part;
  }
  if (!done) throw new AIError("the model server's answer ended before it was complete");
}

// Return the request's body, and the timeout from the options.
function requestOf(body, options = {}) {
  if ('stream' in options) {
    throw new AIError("there is no option 'stream'; call generateStream or chatStream for an answer in pieces");
  }
  const { model, timeout = DEFAULT_TIMEOUT_S, ...others } = options;
  body.model = model || process.env.LLM_MODEL || DEFAULT_MODEL;
  for (const [name, value] of Object.entries(others)) {
    if (REQUEST_FIELDS.has(name)) body[name] = value;
    else (body.options ??= {})[name] = value;
  }
  return { body: Buffer.from(JSON.stringify(body)), timeoutS: Number(timeout) };
}

// Send a request and yield the bytes of the response as they arrive, if its status is 200.
async function* answerTo(path, { body, timeoutS }) {
  const endpoint = endpointInUse();
  const request = send(endpoint, path, body, timeoutS);
  try {
    const response = await responseTo(request, endpoint);
    if (response.statusCode !== 200) await refuse(response, endpoint);
    try {
      yield* response;
    } catch (error) {
      if (error instanceof AIError) throw error;
      throw new AIError(`the model server's answer ended before it was complete: ${error.message}`, { cause: error });
    }
  } finally {
    request.destroy();
  }
}

// Make a new connection for each request (no `agent`), because the server may have closed an idle connection.
function send(endpoint, path, body, timeoutS) {
  const { request: start } = endpoint.startsWith('https:') ? require('https') : require('http');
  const headers = { 'Content-Type': 'application/json', 'Content-Length': body.length };
  const options = { method: 'POST', headers, agent: false, timeout: Math.max(1, timeoutS * 1000) };
  const request = start(endpoint + path, options);
  request.on('timeout', () => {
    const late = new AIError(`the model server at ${endpoint} did not answer within ${timeoutS} s`);
    // If the response has begun, destroy it with the error, so that its reader gets the error.
    (request.res ?? request).destroy(late);
    request.destroy(late);
  });
  return request.end(body);
}

function responseTo(request, endpoint) {
  return new Promise((resolve, reject) => {
    request.on('response', resolve);
    request.on('error', (error) => {
      // If Node.js has tried several addresses, `errors` has one error for each.
      const reason = error.message || error.errors?.map((each) => each.message).join('; ') || error.code;
      reject(
        error instanceof AIError
          ? error
          : new AIError(`the model server at ${endpoint} cannot be reached: ${reason}`, { cause: error }),
      );
    });
  });
}

// Return the server's URL. OLLAMA_HOST may have no scheme, as in Ollama's own programs.
function endpointInUse() {
  for (const name of ['AI_ENDPOINT', 'OLLAMA_HOST']) {
    let endpoint = (process.env[name] ?? '').replace(/\/+$/, '');
    if (!endpoint) continue;
    if (name === 'OLLAMA_HOST' && !endpoint.includes('://')) endpoint = `http://${endpoint}`;
    if (!/^https?:\/\//.test(endpoint)) {
      throw new AIError(`${name} must start with http:// or https://, but is '${endpoint}'`);
    }
    if (!URL.canParse(endpoint)) throw new AIError(`the model server's address '${endpoint}' is invalid`);
    return endpoint;
  }
  return DEFAULT_ENDPOINT;
}

// --- answers

// Yield the lines of a stream of bytes. A piece may end anywhere, even within a character.
async function* lines(pieces) {
  const begun = [];
  for await (let piece of pieces) {
    for (let end; (end = piece.indexOf(0x0a)) >= 0; piece = piece.subarray(end + 1)) {
      const line = Buffer.concat([...begun.splice(0), piece.subarray(0, end)]);
      if (line.toString().trim()) yield line;
    }
    begun.push(piece);
  }
  const rest = Buffer.concat(begun);
  if (rest.toString().trim()) yield rest;
}

async function refuse(response, endpoint) {
  const status = response.statusCode;
  const reason = (await reasonOf(response)) || response.statusMessage;
  throw new AIError(`the model server at ${endpoint} answered ${status}: ${reason}`, { status });
}

// Return the server's reason for a refusal: Ollama's `error` field, else the text.
async function reasonOf(response) {
  const pieces = [];
  let bytes = 0;
  try {
    for await (const piece of response) {
      pieces.push(piece);
      if ((bytes += piece.length) >= 65536) break;
    }
  } catch {
    // The bytes that have arrived are enough.
  }
  const text = Buffer.concat(pieces).toString().trim();
  let reason = text;
  try {
    reason = JSON.parse(text).error ?? text;
  } catch {
    // Not JSON: use the text.
  }
  if (typeof reason === 'object') reason = reason.message ?? JSON.stringify(reason); // the format of OpenAI
  return String(reason).slice(0, ERROR_TEXT_MAX);
}

function parse(raw) {
  let answer;
  try {
    answer = JSON.parse(raw.toString());
  } catch (error) {
    throw new AIError(`the model server's answer is not JSON: ${shown(raw)}`, { cause: error });
  }
  if (answer === null || typeof answer !== 'object' || Array.isArray(answer)) {
    throw new AIError(`the model server's answer is not a JSON object: ${shown(raw)}`);
  }
  if ('error' in answer) {
    // After the first byte, Ollama can report an error only in the body. The status is 200.
    const reason = typeof answer.error === 'string' ? answer.error : JSON.stringify(answer.error);
    throw new AIError(`the model server failed: ${reason}`);
  }
  return answer;
}

function contentOf(answer) {
  return textOf(answer.message, 'content');
}

function textOf(answer, field) {
  const text = answer?.[field];
  if (typeof text !== 'string') throw new AIError(`the model server's answer has no text in '${field}'`);
  return text;
}

function shown(raw) {
  return `'${raw.subarray(0, ERROR_TEXT_MAX).toString()}'`;
}

// Node.js finds these names for `import { generate } from 'ai_client'` only in an object literal.
module.exports = { AIError, chat, chatStream, embed, generate, generateStream };
