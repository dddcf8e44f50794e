'use strict';
// Ask a language model from a function: `const ai = require('ai_client'); console.log(await ai.generate('Hello'));`.
//
// Speaks Ollama's API to the address in AI_ENDPOINT or OLLAMA_HOST. It lies in the image's /node_modules, so both
// `require` and `import` find it; one in the function's own node_modules wins. The clients for Python, C++ and Go
// beside this one have the same calls and say the same of what goes wrong.
//
// The options of every call: `model` (default: the job's `modelId`), `timeout` (longest silence of the server in
// seconds, default 300); `system`, `format`, `keep_alive`, `think` and the like go to the request as they are; every
// other name is an option of the model (`temperature`, `num_predict`, …).

const DEFAULT_ENDPOINT = 'http://127.0.0.1:11434'; // where Ollama listens unless told otherwise
const DEFAULT_MODEL = 'llama3:8b';
const DEFAULT_TIMEOUT_S = 300; // a large model's first answer includes loading it
const ERROR_TEXT_MAX = 500; // characters of a server's words in a message

/** The model could not be asked, or did not answer as it should. */
class AIError extends Error {
  /**
   * @param {string} message What went wrong, for a person.
   * @param {{status?: number, cause?: Error}} [details] The server's HTTP status where it refused (429: a limit is
   *   reached), and what lies beneath.
   */
  constructor(message, { status = null, cause } = {}) {
    super(message, cause && { cause });
    this.name = 'AIError';
    this.status = status;
  }
}

/**
 * Complete a prompt.
 * @param {string} prompt What the model is asked.
 * @param {object} [options] See the top of this file.
 * @returns {Promise<string>} The model's whole answer.
 * @throws {AIError} The server was not reached, refused, or answered something else.
 */
async function generate(prompt, options) {
  return textOf(await ask('/api/generate', { prompt }, options), 'response');
}

/**
 * Complete a prompt, piece by piece as the model writes: `for await (const piece of ai.generateStream('…')) …`.
 * Who stops in between hangs up. Throws as `generate` does, also when the answer breaks off before its end.
 * @returns {AsyncGenerator<string>}
 */
async function* generateStream(prompt, options) {
  for await (const part of askInPieces('/api/generate', { prompt }, options)) yield textOf(part, 'response');
}

/**
 * Continue a conversation.
 * @param {string | {role: string, content: string}[]} messages Oldest first; a string is one message of the user.
 * @param {object} [options] As for `generate`; `tools` too.
 * @returns {Promise<string>} The content of the model's answer.
 * @throws {AIError} As for `generate`.
 */
async function chat(messages, options) {
  return contentOf(await ask('/api/chat', { messages: conversation(messages) }, options));
}

/**
 * Continue a conversation, piece by piece, as `generateStream`.
 * @returns {AsyncGenerator<string>}
 */
async function* chatStream(messages, options) {
  const body = { messages: conversation(messages) };
  for await (const part of askInPieces('/api/chat', body, options)) yield contentOf(part);
}

/**
 * Turn text into vectors.
 * @param {string | string[]} text One text, or several at once.
 * @param {object} [options] As for `generate`; `truncate` and `dimensions` too.
 * @returns {Promise<number[] | number[][]>} The text's vector; for several texts an array of theirs, in order.
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

// Fields of the request itself; whatever else a caller names is an option of the model.
const REQUEST_FIELDS = new Set([
  'system', 'template', 'format', 'keep_alive', 'think', 'images', 'suffix', 'raw', 'tools', 'truncate', 'dimensions',
]);

function conversation(messages) {
  return typeof messages === 'string' ? [{ role: 'user', content: messages }] : messages;
}

// --- asking

// One request with the whole answer in one piece; the answer's JSON object.
async function ask(path, body, options) {
  const request = requestOf({ ...body, stream: false }, options);
  const pieces = [];
  for await (const piece of answerTo(path, request)) pieces.push(piece);
  return parse(Buffer.concat(pieces));
}

// One request with the answer in many pieces, a line of JSON each.
async function* askInPieces(path, body, options) {
  const request = requestOf({ ...body, stream: true }, options);
  let done = false;
  for await (const line of lines(answerTo(path, request))) {
    const part = parse(line);
    done = part.done === true;
    yield part;
  }
  if (!done) throw new AIError("the model server's answer broke off before its end");
}

// The request's body, and the timeout that was among the options.
function requestOf(body, options = {}) {
  if ('stream' in options) {
    throw new AIError("for an answer in pieces call generateStream or chatStream; there is no option 'stream'");
  }
  const { model, timeout = DEFAULT_TIMEOUT_S, ...others } = options;
  body.model = model || process.env.LLM_MODEL || DEFAULT_MODEL;
  for (const [name, value] of Object.entries(others)) {
    if (REQUEST_FIELDS.has(name)) body[name] = value;
    else (body.options ??= {})[name] = value;
  }
  return { body: Buffer.from(JSON.stringify(body)), timeoutS: Number(timeout) };
}

// The bytes of the response to a request, as they come, once its status says that it is an answer.
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
      throw new AIError(`the model server's answer broke off before its end: ${error.message}`, { cause: error });
    }
  } finally {
    request.destroy();
  }
}

// No `agent`: a connection for each request, which cannot have been closed at the other end meanwhile.
function send(endpoint, path, body, timeoutS) {
  const { request: start } = endpoint.startsWith('https:') ? require('https') : require('http');
  const headers = { 'Content-Type': 'application/json', 'Content-Length': body.length };
  const options = { method: 'POST', headers, agent: false, timeout: Math.max(1, timeoutS * 1000) };
  const request = start(endpoint + path, options);
  request.on('timeout', () => {
    const late = new AIError(`the model server at ${endpoint} did not answer within ${timeoutS} s`);
    // The response, if there is one, ends with what the request's socket is destroyed with.
    (request.res ?? request).destroy(late);
    request.destroy(late);
  });
  return request.end(body);
}

function responseTo(request, endpoint) {
  return new Promise((resolve, reject) => {
    request.on('response', resolve);
    request.on('error', (error) => {
      // Of several addresses that were tried, Node.js tells in `errors`.
      const reason = error.message || error.errors?.map((each) => each.message).join('; ') || error.code;
      reject(
        error instanceof AIError
          ? error
          : new AIError(`the model server at ${endpoint} cannot be reached: ${reason}`, { cause: error }),
      );
    });
  });
}

// Where the server is; OLLAMA_HOST may come without a scheme, as Ollama's own programs take it.
function endpointInUse() {
  for (const name of ['AI_ENDPOINT', 'OLLAMA_HOST']) {
    let endpoint = (process.env[name] ?? '').replace(/\/+$/, '');
    if (!endpoint) continue;
    if (name === 'OLLAMA_HOST' && !endpoint.includes('://')) endpoint = `http://${endpoint}`;
    if (!/^https?:\/\//.test(endpoint)) {
      throw new AIError(`${name} should start with http:// or https://, but is '${endpoint}'`);
    }
    if (!URL.canParse(endpoint)) throw new AIError(`the model server's address '${endpoint}' is none`);
    return endpoint;
  }
  return DEFAULT_ENDPOINT;
}

// --- reading answers

// The lines of a stream of bytes. Pieces may end anywhere, within a letter too.
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
  const words = (await wordsOf(response)) || response.statusMessage;
  throw new AIError(`the model server at ${endpoint} answered ${status}: ${words}`, { status });
}

// What the server said about its refusal: Ollama's `error` field, else its text.
async function wordsOf(response) {
  const pieces = [];
  let bytes = 0;
  try {
    for await (const piece of response) {
      pieces.push(piece);
      if ((bytes += piece.length) >= 65536) break;
    }
  } catch {
    // What has come will do.
  }
  const text = Buffer.concat(pieces).toString().trim();
  let said = text;
  try {
    said = JSON.parse(text).error ?? text;
  } catch {
    // No JSON: the text itself.
  }
  if (typeof said === 'object') said = said.message ?? JSON.stringify(said); // OpenAI's shape
  return String(said).slice(0, ERROR_TEXT_MAX);
}

function parse(raw) {
  let answer;
  try {
    answer = JSON.parse(raw.toString());
  } catch (error) {
    throw new AIError(`the model server answered no JSON: ${shown(raw)}`, { cause: error });
  }
  if (answer === null || typeof answer !== 'object' || Array.isArray(answer)) {
    throw new AIError(`the model server answered no JSON object: ${shown(raw)}`);
  }
  if ('error' in answer) {
    // Ollama reports what fails after its first byte this way, under status 200.
    const said = typeof answer.error === 'string' ? answer.error : JSON.stringify(answer.error);
    throw new AIError(`the model server failed: ${said}`);
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

// In this form, so that `import { generate } from 'ai_client'` works as well.
module.exports = { AIError, chat, chatStream, embed, generate, generateStream };
