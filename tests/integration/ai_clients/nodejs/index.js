'use strict';
// As python/main.py.
const readline = require('readline');
const ai = require('ai_client');

const TIMEOUT_S = 0.3;
const hex = (text) => Buffer.from(text).toString('hex');

async function gathered(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
}

async function first(stream) {
  for await (const piece of stream) return [piece];
}

async function call(name, text) {
  const options = name.endsWith('-briefly') ? { timeout: TIMEOUT_S } : undefined;
  switch (name.replace(/-briefly$/, '')) {
    case 'generate':
      return [await ai.generate(text, options)];
    case 'generate-tuned':
      return [await ai.generate(text, { model: 'other', system: 'Be brief.', format: 'json', temperature: 0 })];
    case 'generate-stream':
      return gathered(ai.generateStream(text, options));
    case 'chat':
      return [await ai.chat([{ role: 'user', content: text }], options)];
    case 'chat-stream':
      return gathered(ai.chatStream([{ role: 'user', content: text }], options));
    case 'stop':
      return first(ai.generateStream(text));
    case 'embed':
      return [(await ai.embed(text)).join(',')];
    case 'embed-both':
      return [(await ai.embed([text, '다른'])).map((vector) => vector.join(',')).join(';')];
    default:
      throw new Error(name);
  }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [endpoint, name, hexadecimal] = line.split(' ');
    process.env.AI_ENDPOINT = endpoint;
    try {
      const pieces = await call(name, Buffer.from(hexadecimal, 'hex').toString());
      console.log('ok', pieces.map(hex).join(','));
    } catch (error) {
      if (!(error instanceof ai.AIError)) throw error;
      console.log('error', error.status ?? 0, hex(error.message));
    }
  }
}

main();
