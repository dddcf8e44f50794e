// As python/main.py.
const ai = require('ai_client');

const { prompt, count } = JSON.parse(process.env.PAYLOAD);
const messages = [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: prompt }];

async function joined(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces.join('|');
}

async function main() {
  console.log('generate:', await ai.generate(prompt));
  console.log('limited:', await ai.generate(count, { num_predict: 3, temperature: 0 }));
  console.log('generate_stream:', await joined(ai.generateStream(count)));
  console.log('chat:', await ai.chat(messages));
  console.log('chat_stream:', await joined(ai.chatStream(messages)));
  const both = await ai.embed([prompt, count]);
  console.log('embed:', (await ai.embed(prompt))[0].toFixed(6), ...both.map((each) => each[7].toFixed(6)));
  for (const model of ['no-such-model', 'not-for-functions']) {
    await ai.generate(prompt, { model }).catch((error) => console.log('refused:', error.status, error.message));
  }
  let answers = 0;
  try {
    for (;; answers++) await ai.generate('count to 1');
  } catch (error) {
    console.log('limit:', answers, error.status, error.message);
  }
}

main();
