// The ollama package as it is: the address that it takes without a word is the gateway's.
const { default: ollama } = require('ollama');

const { prompt, count } = JSON.parse(process.env.PAYLOAD);
const model = process.env.LLM_MODEL;
const messages = [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: prompt }];

async function joined(stream, text) {
  const pieces = [];
  for await (const part of stream) pieces.push(text(part));
  return pieces.join('|');
}

async function main() {
  console.log('generate:', (await ollama.generate({ model, prompt })).response);
  const limited = await ollama.generate({ model, prompt: count, options: { num_predict: 3 } });
  console.log('limited:', limited.response);
  const stream = await ollama.generate({ model, prompt: count, stream: true });
  console.log('generate_stream:', await joined(stream, (part) => part.response));
  console.log('chat:', (await ollama.chat({ model, messages })).message.content);
  const chat = await ollama.chat({ model, messages, stream: true });
  console.log('chat_stream:', await joined(chat, (part) => part.message.content));
  const one = (await ollama.embed({ model, input: prompt })).embeddings[0];
  const both = (await ollama.embed({ model, input: [prompt, count] })).embeddings;
  console.log('embed:', one[0].toFixed(6), ...both.map((each) => each[7].toFixed(6)));
  const refused = (name) => (error) => console.log(name, error.status_code, error.message);
  for (const unusable of ['no-such-model', 'not-for-functions']) {
    await ollama.generate({ model: unusable, prompt }).catch(refused('refused:'));
  }
  console.log('models:', (await ollama.list()).models.some((each) => each.model === 'llama3:8b'));
  let answers = 0;
  try {
    for (;; answers++) await ollama.generate({ model, prompt: 'count to 1' });
  } catch (error) {
    refused(`limit: ${answers}`)(error);
  }
}

main();
