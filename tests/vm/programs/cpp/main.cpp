// What the checks have a job do; `PAYLOAD` says which and how much. main.py does the same.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const places[] = {"/tmp", "/dev/shm", "/output", "."};

static void confinement()
{
    char label[256];
    int file = open("/proc/self/attr/current", O_RDONLY);
    ssize_t length = read(file, label, sizeof label - 1);
    printf("%.*s\n", length > 0 ? static_cast<int>(length) : 0, label);
}

static void leave()
{
    for (const char *place : places) {
        char path[64];
        snprintf(path, sizeof path, "%s/left-behind", place);
        close(open(path, O_WRONLY | O_CREAT, 0644));
    }
    // The code is a run's own to change: copied up, hidden, and as it was for the next run.
    if (chmod("main.cpp", 0700) || truncate("main.cpp", 0) || mkdir("folder", 0755) ||
        rename("main.cpp", "folder/main.cpp"))
        exit(1);
    if (fork() == 0) {
        setsid();
        close(1);
        close(2);
        sleep(1000);
    }
}

static void look()
{
    const char *separator = "";
    printf("{\"files\": [");
    for (const char *place : places) {
        DIR *folder = opendir(place);
        while (dirent *entry = readdir(folder)) {
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
                continue;
            printf("%s\"%s\"", separator, entry->d_name);
            separator = ", ";
        }
        closedir(folder);
    }
    printf("], \"processes\": [");
    separator = "";
    DIR *folder = opendir("/proc");
    while (dirent *entry = readdir(folder)) {
        int pid = atoi(entry->d_name);
        if (pid > 1 && pid != getpid()) {
            printf("%s%d", separator, pid);
            separator = ", ";
        }
    }
    printf("]}\n");
}

static void hold(size_t mib)
{
    auto *held = static_cast<volatile char *>(malloc(mib << 20));
    for (size_t at = 0; at < mib << 20; at += 4096)
        held[at] = 1;
    printf("%zu\n", mib << 20);
}

static void hold_in_a_child(size_t mib)
{
    if (fork() == 0) {
        hold(mib);
        _exit(0);
    }
    wait(nullptr);
}

static void fork_many(int count)
{
    while (count--)
        if (fork() == 0)
            sleep(1000);
}

int main()
{
    const char *payload = getenv("PAYLOAD");
    const int amount = atoi(strchr(strstr(payload, "\"amount\""), ':') + 1);
    const char *what = strstr(payload, "\"do\"");
    auto wanted = [&](const char *name) { return strstr(what, name) != nullptr; };
    if (wanted("confinement"))
        confinement();
    else if (wanted("leave"))
        leave();
    else if (wanted("look"))
        look();
    else if (wanted("hold_in_a_child"))
        hold_in_a_child(static_cast<size_t>(amount));
    else if (wanted("hold"))
        hold(static_cast<size_t>(amount));
    else
        fork_many(amount);
}
