// The openai package, by OPENAI_BASE_URL and OPENAI_API_KEY alone.
const { OpenAI } = require('openai');

const client = new OpenAI();
const { prompt, count } = JSON.parse(process.env.PAYLOAD);
const model = process.env.LLM_MODEL;
const messages = [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: prompt }];
const counting = [{ role: 'user', content: count }];

async function joined(stream, text) {
  const pieces = [];
  for await (const chunk of stream) pieces.push(text(chunk));
  return pieces.join('|');
}

async function main() {
  const { chat, completions, embeddings, models } = client;
  console.log('chat:', (await chat.completions.create({ model, messages })).choices[0].message.content);
  const short = await chat.completions.create({ model, messages: counting, max_tokens: 3 });
  const { message, finish_reason: reason } = short.choices[0];
  console.log('limited:', message.content, reason, short.usage.total_tokens);
  const stream = await chat.completions.create({ model, messages: counting, stream: true });
  console.log('chat_stream:', await joined(stream, (chunk) => chunk.choices[0].delta.content ?? ''));
  const options = { stream: true, stream_options: { include_usage: true } };
  const told = [];
  for await (const chunk of await chat.completions.create({ model, messages: counting, ...options })) told.push(chunk);
  console.log('with usage:', told.at(-1).usage.total_tokens, told.at(-1).choices.length);
  console.log('completion:', (await completions.create({ model, prompt })).choices[0].text);
  const counted = await completions.create({ model, prompt: count, stream: true });
  console.log('completion_stream:', await joined(counted, (chunk) => chunk.choices[0].text));
  const vectors = (await embeddings.create({ model, input: [prompt, count] })).data;
  console.log('embed:', ...vectors.map((each) => each.embedding[0].toFixed(6)));
  for (const unusable of ['no-such-model', 'not-for-functions']) {
    try {
      await chat.completions.create({ model: unusable, messages });
    } catch (error) {
      if (!(error instanceof OpenAI.NotFoundError)) throw error;
      console.log('refused:', error.status, error.error.message);
    }
  }
  const names = [];
  for await (const each of await models.list()) names.push(each.id);
  console.log('models:', names.includes('llama3:8b'));
  const together = await Promise.all([1, 2, 3, 4, 5].map((most) => completions.create({ model, prompt: `count to ${most}` })));
  console.log('together:', together.map((each) => each.choices[0].text).join(','));
  let answers = 0;
  try {
    for (;; answers++) await completions.create({ model, prompt: 'count to 1' });
  } catch (error) {
    if (!(error instanceof OpenAI.RateLimitError)) throw error;
    console.log('limit:', answers, error.status, error.error.message);
  }
}

main();
